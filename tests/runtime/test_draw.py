"""Pictures in one call are those of `generate`; the engine is opened for it alone, and for as much work as there is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import BadInput, Bundle, Edit, Engine, Failure, draw, generate, open_engine
from cfgdiff.runtime.engine import OpenedEngine

CLASSES = ["frog", "ship", "cat"]


@pytest.fixture
def opening(
    packaged: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[tuple[OpenedEngine, dict[str, Any]]]]:
    """What was opened, and with which arguments."""
    found = list[tuple[OpenedEngine, dict[str, Any]]]()

    def opener(bundle: Bundle, **arguments: Any) -> OpenedEngine:
        found.append((open_engine(bundle, "cpu", threads=1), arguments))
        return found[-1][0]

    monkeypatch.setitem(draw.__globals__, "open_engine", opener)
    return lambda: found


def test_it_draws_what_generate_does(packaged: Bundle, engine: Engine) -> None:
    settings: dict[str, Any] = {
        "steps": 3,
        "guidance": [1, 2, 4],
        "seed": [5, 6, 2**64 - 1],
        "sampler": "euler-a",
        "batch": 2,
    }
    found = draw(packaged, CLASSES, engine, **settings)
    assert found.shape == (3, 32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(
        found, np.concatenate([p for _, p in generate(engine, packaged, CLASSES, **settings)])
    )


def test_it_opens_an_engine_for_the_work_there_is_and_closes_it(packaged: Bundle, opening: Any) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    found = draw(packaged, CLASSES, steps=10, sampler="ddim", guidance=2, batch=2, edit=Edit(picture, 0.4))
    ((opened, arguments),) = opening()
    assert found.shape == (3, 32, 32, 3) and arguments == {"rows": 3 * 4 * 2, "batch": 2}
    with pytest.raises(Failure, match="cpu: the engine is closed; open it again"):
        draw(packaged, CLASSES, opened, steps=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": "frog"}, "classes"),
        ({"classes": []}, "classes"),
        ({"steps": 2.5}, "steps"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_input_is_named_before_an_engine_is_opened(
    packaged: Bundle, opening: Any, wrong: dict, message: str
) -> None:
    with pytest.raises(BadInput, match=f"^{message}: expected"):
        draw(packaged, **({"classes": CLASSES} | wrong))
    assert not opening()
