from dataclasses import replace

import pytest

from cfgdiff.runtime import Bundle, Request, resolve
from cfgdiff.runtime.measured import distances, doubt


def row(evaluations: int, frechet: float, varied: str = "evaluations") -> dict[str, object]:
    return {"varied": varied, "evaluations": evaluations, "frechet": frechet}


@pytest.fixture
def swept(packaged: Bundle) -> Bundle:
    sweep = [row(10, 1.0, "guidance"), row(2, 40.0), row(4, 14.0), row(5, 11.0), row(10, 10.0)]
    return replace(packaged, evaluation={"sweep": sweep})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, "not measured; 4 steps have 14.0"), (2, "Fréchet distance 40.0; 4 steps"), (4, ""), (5, ""), (20, "")],
)
def test_steps_below_what_was_measured_to_be_good_are_doubted(swept: Bundle, steps: int, expected: str) -> None:
    line = doubt(swept, resolve(swept, Request(["frog"], steps)))
    assert expected in line
    assert bool(line) == bool(expected)


def test_nothing_is_said_where_nothing_was_measured(packaged: Bundle) -> None:
    for evaluation in ({}, {"sweep": []}, {"sweep": [{"varied": "evaluations"}]}, {"sweep": 7}):
        bundle = replace(packaged, evaluation=evaluation)
        assert distances(bundle) == {}
        assert doubt(bundle, resolve(bundle, Request(["frog"], 1))) == ""
