"""A peer that draws other pictures is not timed, and the fastest is the reference."""

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import bench
from cfgdiff.benchmarks.bench import lead_rows, papers_way, peer_rows
from cfgdiff.benchmarks.peers import Draw
from cfgdiff.runtime import Bundle


def drawer(seconds: float = 0.0, level: int = 0) -> Draw:
    """A loop that takes its time and draws pictures of one grey."""

    def draw(n: int) -> np.ndarray:
        time.sleep(seconds)
        return np.full((n, 4, 4, 3), level, np.uint8)

    return draw


def test_peers_that_draw_other_pictures_are_named() -> None:
    assert (
        len(
            peer_rows(
                {"ours": drawer(), "another": drawer(level=2), "another, bfloat16": drawer(level=9)}, [1], rounds=1
            )
        )
        == 3
    )
    with pytest.raises(
        bench.Failure, match=r"^another: 100\.0% of its pixels differ from ours by more than 2 grey levels$"
    ):
        peer_rows({"ours": drawer(), "another": drawer(level=3)}, [1], rounds=1)


def test_the_fastest_of_diffusers_loops_is_the_reference() -> None:
    loops = {
        "cfgdiff, fast": drawer(),
        "diffusers, slow": drawer(0.05),
        "diffusers, quick": drawer(0.02, 2),
        "cfgdiff, slow": drawer(0.08),
    }
    rows = peer_rows(loops, [1, 3], rounds=3)
    assert [(row["loop"], row["B"]) for row in rows] == [(name, n) for n in (1, 3) for name in loops]
    for row in rows:
        ratio = row["times diffusers' fastest"]
        expected = {
            "cfgdiff, fast": ratio > 2,
            "diffusers, slow": ratio < 0.8,
            "diffusers, quick": ratio == 1,
            "cfgdiff, slow": ratio < 0.8,
        }
        assert expected[row["loop"]] and row["fastest of diffusers"] == (row["loop"] == "diffusers, quick")
    assert all(
        row["times diffusers' fastest"] is None
        for row in peer_rows({"ours": drawer(), "another": drawer()}, [1], rounds=1)
    )


def test_the_lead_is_what_a_user_gets_beside_diffusers_fastest() -> None:
    loops = {
        "cfgdiff, a": drawer(),
        "cfgdiff, b": drawer(0.05),
        "diffusers, eager": drawer(0.02),
        "diffusers, compiled": drawer(0.08),
    }
    rows = peer_rows(loops, [1, 64], rounds=3)
    for loop, faster in (("cfgdiff, a", True), ("cfgdiff, b", False)):
        lead = lead_rows(rows, loop, [1, 64])
        assert [(row["B"], row["loop"], row["diffusers"], row["compiled loops timed"]) for row in lead] == [
            (1, loop, "diffusers, eager", True), (64, loop, "diffusers, eager", True),
        ]  # fmt: skip
        assert all((row["times diffusers' fastest"] > 1) is faster and len(row["ratios"]) == 3 for row in lead)
        assert all((row["pictures/s"] > row["diffusers, pictures/s"]) is faster for row in lead)
    (alone,) = lead_rows(peer_rows({"ours": drawer()}, [1], rounds=1), "ours", [1])
    assert alone["diffusers"] is None and alone["ratios"] is None and not alone["compiled loops timed"]


def test_the_papers_way_is_a_thousand_steps_of_the_same_engine(small_bundle: Bundle, sleeper: Any) -> None:
    engine = sleeper(0.002)
    found = papers_way(engine, small_bundle, 2, 3, 2)
    steps = small_bundle.defaults.steps
    assert [b for b, _ in engine.calls] == ([2] * steps + [2] * 3) * 3
    assert found["paper's way, s"] >= 1000 * 0.004 and 0.5 * 1000 / steps < found["times"] < 2 * 1000 / steps
