"""The graph's contract as ONNX Runtime keeps it."""

from importlib import metadata

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine, open_engine
from cfgdiff.runtime.errors import BadInput, Failure


def inputs(b: int, w: list[float]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"sample": rng.standard_normal((b, 3, 32, 32), np.float32), "timestep": rng.uniform(1, 1000, b).astype(np.float32),
            "class_label": np.arange(b) % 10, "guidance": np.array(w, np.float32)}  # fmt: skip


def test_w_of_one_is_the_conditional_prediction(engine: Engine) -> None:
    guided, plain = engine.predict(**inputs(5, [1] * 5)), engine.predict(**inputs(5, []))
    np.testing.assert_allclose(guided, plain, atol=1e-4)


def test_guidance_is_linear_and_touches_its_rows_only(engine: Engine) -> None:
    uncond, cond, beyond = (engine.predict(**inputs(5, [w] * 3)) for w in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(beyond[:3], (uncond + 3 * (cond - uncond))[:3], atol=1e-4)
    np.testing.assert_allclose(beyond[3:], cond[3:], atol=1e-4)
    assert np.abs(uncond - cond)[:3].max() > 1e-2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "sample",
            np.zeros((2, 3, 16, 16), np.float32),
            r"Expected float32 \(2, 3, 32, 32\), got .* for input: sample",
        ),
        ("timestep", np.zeros(2), "got float64"),
        ("guidance", np.ones(3, np.float32), "at most 2 rows"),
    ],
)
def test_wrong_inputs_are_named(engine: Engine, name: str, value: np.ndarray, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        engine.predict(**(inputs(2, []) | {name: value}))


def test_both_onnxruntimes_at_once_are_reported(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    with pytest.raises(Failure, match=r"both installed.*pip uninstall"):
        open_engine(packaged, "cpu")
