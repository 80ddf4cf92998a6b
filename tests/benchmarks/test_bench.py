"""Cases take turns, ratios are of the same round, and a peer that draws other pictures is not timed."""

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import bench
from cfgdiff.benchmarks.bench import EAGER, Case, engine_rows, interleaved, papers_way, peer_rows
from cfgdiff.runtime import Bundle


def test_cases_take_turns_after_one_that_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE", 0)
    calls: list[str] = []
    found = interleaved({"a": lambda: (time.sleep(0.01), calls.append("a")), "b": lambda: calls.append("b")}, rounds=3, pictures=2)
    assert calls == ["a", "b"] * 4 and [len(case.seconds) for case in found.values()] == [3, 3]
    assert min(found["a"].seconds) >= 0.01 > found["b"].median


def test_ratios_are_of_the_same_round() -> None:
    fast, slow = Case("fast", 4, [1.0, 2.0, 10.0]), Case("slow", 2, [2.0, 4.0, 20.0])
    assert fast.median == 2.0 and fast.spread == "1000.0 .. 10000.0"
    assert fast.times(slow) == 4.0 and slow.times(fast) == 0.25


def test_every_engine_is_called_at_what_it_takes(small_bundle: Bundle, sleeper: Any) -> None:
    small, large = sleeper(), sleeper()
    large.max_batch = 8
    rows = engine_rows({"small": small, "large": large}, small_bundle, [2, 8], 2, {"float32": 1e9})
    assert [(row["engine"], row["B"], row["G"]) for row in rows] == [
        ("small", 2, 0), ("large", 2, 0), ("small", 2, 2), ("large", 2, 2), ("large", 8, 0), ("large", 8, 8),
    ]  # fmt: skip
    assert small.calls == [(2, 0)] * 3 + [(2, 2)] * 3
    for row in rows:
        assert row["of peak"] == pytest.approx(row["gflops"]) and row["ms"] >= row["B"] + row["G"]


def test_peers_that_draw_other_pictures_are_named() -> None:
    def draw(n: int) -> np.ndarray:
        return np.zeros((n, 4, 4, 3), np.uint8)

    rows = peer_rows({"ours": draw, EAGER: lambda n: (time.sleep(0.01), draw(n) + np.uint8(2))[1]}, [1, 3], rounds=3)
    assert [(row["loop"], row["B"]) for row in rows] == [("ours", 1), (EAGER, 1), ("ours", 3), (EAGER, 3)]
    assert all(row["times diffusers"] > 1.5 for row in rows if row["loop"] == "ours")
    assert all(row["times diffusers"] == 1 for row in rows if row["loop"] == EAGER)
    assert all(row["times diffusers"] is None for row in peer_rows({"ours": draw, "another": draw}, [1], rounds=1))
    with pytest.raises(bench.Failure, match=r"^another: 100\.0% of its pixels differ from ours by more than 2 grey levels$"):
        peer_rows({"ours": draw, "another": lambda n: draw(n) + np.uint8(3)}, [1], rounds=1)


def test_the_papers_way_is_a_thousand_steps_of_the_same_engine(small_bundle: Bundle, sleeper: Any) -> None:
    engine = sleeper(0.002)
    found = papers_way(engine, small_bundle, 2, 3, 2)
    steps = small_bundle.defaults.steps
    assert [b for b, _ in engine.calls] == ([2] * steps + [2] * 3) * 3
    assert found["paper's way, s"] >= 1000 * 0.004 and 0.5 * 1000 / steps < found["times"] < 2 * 1000 / steps
