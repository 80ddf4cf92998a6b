"""Every engine is called at what it takes, and a peer that draws other pictures is not timed."""

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import bench
from cfgdiff.benchmarks.bench import EAGER, engine_rows, papers_way, peer_rows
from cfgdiff.runtime import Bundle


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
