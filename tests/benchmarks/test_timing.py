"""Cases take turns, what is timed is what took its time, and ratios are of the same round."""

import time

import pytest

from cfgdiff.benchmarks import timing
from cfgdiff.benchmarks.timing import Case, interleaved


def test_cases_take_turns_after_one_that_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    calls: list[str] = []
    found = interleaved(
        {"a": lambda: (time.sleep(0.01), calls.append("a")), "b": lambda: calls.append("b")}, rounds=3, pictures=2
    )
    assert calls == ["a", "b"] * 4 and [len(case.seconds) for case in found.values()] == [3, 3]
    assert min(found["a"].seconds) >= 0.01 > found["b"].median


def test_ratios_are_of_the_same_round() -> None:
    fast, slow = Case("fast", 4, [1.0, 2.0, 10.0]), Case("slow", 2, [2.0, 4.0, 20.0])
    assert fast.median == 2.0 and fast.spread == "1000.0 .. 10000.0"
    assert fast.times(slow) == 4.0 and slow.times(fast) == 0.25 and fast.ratios(slow) == [4.0, 4.0, 4.0]
