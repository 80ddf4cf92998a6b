"""OpenVINO answers as ONNX Runtime does, at the precision that was asked for, and keeps to itself."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine, generate, open_engine
from cfgdiff.runtime.engine_openvino import OpenVinoEngine, _only, import_openvino
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.threads import cores

CASES = [(1, 0), (1, 1), (5, 3), (8, 0), (8, 8)]


def inputs(bundle: Bundle, b: int, g: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((b, *bundle.image_shape), np.float32),
        "timestep": rng.uniform(1, 1000, b).astype(np.float32),
        "class_label": np.arange(b) % len(bundle.class_names),
        "guidance": rng.uniform(1, 4, g).astype(np.float32),
    }


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def opened(packaged: Bundle) -> Iterator[Engine]:
    """The packaged model. (`pytest.importorskip` would import OpenVINO with all that it reports.)"""
    try:
        engine = open_engine(packaged, "openvino", "float32", threads=1)
    except Failure as error:
        pytest.skip(f"needs OpenVINO: {error}")
    yield engine
    engine.close()


def test_with_closes_it_and_a_closed_one_says_so(opened: Engine, packaged: Bundle) -> None:
    with open_engine(packaged, "openvino", "float32", threads=1) as other:
        pass
    with pytest.raises(Failure, match=r"^openvino: the engine is closed; open it again$"):
        other.predict(**inputs(packaged, 2, 1))


@pytest.mark.parametrize(("b", "g"), CASES)
def test_float32_is_onnx_runtimes(opened: Engine, engine: Engine, packaged: Bundle, b: int, g: int) -> None:
    assert (opened.name, opened.precision, opened.max_batch) == ("openvino", "float32", 4096)
    for seed in range(2):
        given = inputs(packaged, b, g, seed)
        assert apart(opened.predict(**given), engine.predict(**given)) < 1e-4


def test_the_same_seed_gives_the_same_pictures_as_on_onnx_runtime(
    opened: Engine, engine: Engine, packaged: Bundle
) -> None:
    classes = packaged.class_names[:6]
    ((_, found),), ((_, expected),) = (list(generate(one, packaged, classes)) for one in (opened, engine))
    assert (np.abs(found.astype(int) - expected) <= 2).mean() >= 0.999


def test_answers_are_the_callers_own_and_inputs_may_lie_as_they_like(
    opened: Engine, engine: Engine, packaged: Bundle
) -> None:
    given = inputs(packaged, 5, 3)
    first = opened.predict(**given)
    before = first.copy()
    opened.predict(**inputs(packaged, 5, 3, seed=1))
    np.testing.assert_array_equal(first, before)
    given["sample"] = np.asfortranarray(given["sample"])
    np.testing.assert_array_equal(opened.predict(**given), before)
    with pytest.raises(BadInput, match="at most 2 rows"):
        opened.predict(**inputs(packaged, 2, 3))


@pytest.mark.parametrize(("precision", "limit", "rest"), [("float16", 2e-3, 1e-5), ("int8", 0.1, 0.02)])
def test_the_other_variants_are_read_right(
    small_bundle: Bundle, opened: Engine, precision: str, limit: float, rest: float
) -> None:
    """As far from ONNX Runtime's as that is from float32, and no farther from float32, but for int8's rest, which may
    be in bfloat16."""
    tested, same, exact = (
        open_engine(small_bundle, *wanted)
        for wanted in (("openvino", precision), ("cpu", precision), ("cpu", "float32"))
    )
    assert tested.precision == precision
    if "BF16" not in _only(import_openvino().Core).get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        rest = 1e-5  # nothing is computed in bfloat16
    for b, g in CASES:
        given = inputs(small_bundle, b, g)
        answer, expected = tested.predict(**given), exact.predict(**given)
        assert apart(answer, same.predict(**given)) < limit
        assert apart(answer, expected) < 1.5 * apart(same.predict(**given), expected) + rest


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_and_neighbours_change_no_bit_of_an_answer(opened: Engine, packaged: Bundle, precision: str) -> None:
    try:
        two = OpenVinoEngine(packaged, precision, threads=2)
    except Failure as error:
        pytest.skip(f"needs a CPU with {precision}: {error}")
    given = inputs(packaged, 37, 20)
    whole, one = two.predict(**given), OpenVinoEngine(packaged, precision, threads=1)
    np.testing.assert_array_equal(one.predict(**given), whole)
    for lo, hi in [(0, 1), (9, 30), (19, 21), (25, 37)]:
        np.testing.assert_array_equal(
            two.predict(**{name: array[lo:hi] for name, array in given.items()}), whole[lo:hi]
        )
    two.close()
    one.close()


def test_many_rows_are_shared_out_in_requests_of_a_few_shapes(
    packaged: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, asked = OpenVinoEngine(packaged, "float32", threads=2), list[tuple[int, int, int]]()
    queue = OpenVinoEngine._queue
    monkeypatch.setattr(OpenVinoEngine, "_queue", lambda self, *shape: (asked.append(shape), queue(self, *shape))[1])
    for b, g, expected in [
        (1, 1, [(1, 1, 1)]),
        (6, 0, [(2, 2, 0), (2, 1, 0)]),
        (37, 34, [(2, 16, 16), (2, 1, 1), (2, 2, 0)]),
    ]:
        asked.clear()
        two.predict(**inputs(packaged, b, g))
        assert asked == expected
    two.close()


def test_threads_take_turns(opened: Engine, engine: Engine, packaged: Bundle) -> None:
    wrong: list[float] = []

    def work(seed: int) -> None:
        for b in (1, 2, 3):
            given = inputs(packaged, b, b // 2, seed)
            if not (error := apart(opened.predict(**given), engine.predict(**given))) < 1e-4:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class FakeCore:
    """An OpenVINO that remembers what it was asked for."""

    capabilities, asked = ["FP32", "BF16"], list[tuple]()

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities

    def read_model(self, path: str) -> Any:
        model = SimpleNamespace(name=Path(path).name, reshape=lambda shapes: None)
        model.clone = lambda: model
        return model

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
        self.asked.append((model.name, device, settings))


class FakeQueue(list):
    """No requests."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def set_callback(self, _: object) -> None:
        """Nothing calls it."""


def test_precision_and_threads_are_pinned(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Core=FakeCore, AsyncInferQueue=FakeQueue)
    monkeypatch.setitem(sys.modules, "openvino", module)  # type: ignore[arg-type]
    monkeypatch.setattr(FakeCore, "asked", [])
    waves = SimpleNamespace(name="waves", create_infer_request=lambda: None)
    monkeypatch.setattr("cfgdiff.runtime.engine_openvino.split", lambda openvino, model: (waves, model))
    for precision, threads, streams in (("float32", None, 1), ("float32", 3, 3), ("bfloat16", None, 1)):
        opened = OpenVinoEngine(packaged, precision, threads)
        assert opened.precision == precision
        opened._queue(streams, 4, 4)
    assert FakeCore.asked == [
        ("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores(), "NUM_STREAMS": 1}),
        ("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 3}),
        ("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": cores(), "NUM_STREAMS": 1}),
        ("waves", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}),
    ]
    monkeypatch.setattr(FakeCore, "capabilities", ["FP32"])
    with pytest.raises(Failure, match=r"^precision: .* no instructions for bfloat16 in this CPU; take float32$"):
        OpenVinoEngine(packaged, "bfloat16")
    with pytest.raises(BadInput, match="no 'int8' variant; choose from float32"):
        OpenVinoEngine(packaged, "int8")


def test_bfloat16_where_the_cpu_has_it(opened: Engine, engine: Engine, packaged: Bundle) -> None:
    if "BF16" not in _only(import_openvino().Core).get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bfloat16 (AVX512_BF16, AMX)")
    given, low = inputs(packaged, 5, 3), open_engine(packaged, "openvino", "bfloat16")
    assert low.precision == "bfloat16" and 1e-5 < apart(low.predict(**given), engine.predict(**given)) < 0.1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("none", name="openvino"),
            r"^OpenVINO is not installed; pip install 'cfgdiff\[openvino\]'$",
        ),
        (
            OSError("libtbb.so.12: cannot open shared object file"),
            r"^OpenVINO cannot be loaded \(libtbb.so.12: .*; pip install",
        ),
    ],
)
def test_what_is_missing_is_named(
    packaged: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(Failure, match=message):
        open_engine(packaged, "openvino", "float32")
    assert "openvino_telemetry" not in sys.modules


def test_a_graph_that_it_cannot_read(copied: Path, packaged: Bundle, opened: Engine) -> None:
    (copied / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(Failure, match=r"model.onnx: OpenVINO cannot run it \(.+\); export the model again") as caught:
        OpenVinoEngine(replace(packaged, path=copied), "float32")
    assert "\n" not in str(caught.value)


def test_opening_it_reports_nothing_to_anybody(opened: Engine, tmp_path: Path) -> None:
    code = """import sys
from cfgdiff.runtime import load_bundle, open_engine
open_engine(load_bundle(), "openvino", "float32").close()
assert "openvino" in sys.modules and not [name for name in sys.modules if name.startswith("openvino_telemetry")]"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_engines_came_and_went_is_survived(opened: Engine) -> None:
    code = """import gc, os, signal
from cfgdiff.runtime import load_bundle, open_engine
first, second = (open_engine(load_bundle(), "openvino", "float32", threads=1) for _ in range(2))
for engine in (first, second):
    engine.close()
del first, second, engine
gc.collect()
signal.signal(signal.SIGTERM, lambda number, _: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result
