"""The speed of a cascade beside loops of equal work: what is compared, what it costs, and what is left out."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stages import STEPS

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")

from cfgdiff.benchmarks.cascade import cascade_report, case_rows, measure_cascade
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.engines import ENGINES
from cfgdiff.runtime.errors import Failure


def drawer(seconds: float) -> Any:
    def draw(n: int) -> np.ndarray:
        time.sleep(seconds)
        return np.zeros((n, 2, 2, 3), np.uint8)

    return draw


def test_every_loop_is_compared_with_what_a_user_gets() -> None:
    slow, fast = case_rows({"slow": (3.0, drawer(0.04)), "fast": (2.0, drawer(0.01))}, "fast", 2, 3)
    assert (slow["loop"], slow["gmac"], slow["B"]) == ("slow", 3.0, 2)
    assert 1.5 < slow["chosen is faster"] < 6 and len(slow["ratios"]) == 3 and fast["ratios"] == [1.0] * 3
    assert slow["GMAC/s"] == pytest.approx(3 * slow["pictures/s"]) and slow["pictures/s"] < fast["pictures/s"]


def test_a_cascade_is_measured_beside_equal_work(
    cascade: Bundle, monkeypatch: pytest.MonkeyPatch, set_openers: Callable[[dict[str, Any]], None]
) -> None:
    monkeypatch.setattr("cfgdiff.trainer.optim.fast_bfloat16", lambda _: False)
    set_openers({"cpu": ENGINES["cpu"].open})
    report = measure_cascade(cascade, [2], 20, 1, 1, False, (), lambda part: None)
    base, *_ = costs = [model.gmac or 0 for model in cascade.models]
    gmac = sum(2 * cost * steps for cost, steps in zip(costs, STEPS, strict=True)) - base  # its interval leaves one out
    assert report["gmac"] == pytest.approx(gmac) and report["direct"]["gmac"] == pytest.approx(gmac, rel=0.1)
    *own, peer = report["rows"]
    assert [row["loop"] for row in own][:2] == ["cfgdiff, cpu float32", "cfgdiff, cpu int8"]
    assert report["chosen"] in [row["loop"] for row in own] and {row["gmac"] for row in own} == {report["gmac"]}
    assert peer["loop"].startswith("diffusers, direct: eager float32") and peer["gmac"] == report["direct"]["gmac"]
    same, compiled = report["skipped"]
    assert same.startswith("diffusers' loop around the same networks: ") and "give --checkpoint RUN" in same
    assert compiled.startswith("diffusers' compiled loops")
    text = cascade_report(report)
    assert f"Left out: {same}." in text and f"in {report['direct']['evaluations']} guided evaluations of DDIM" in text
    assert f"| {peer['loop']}" in text and "| cfgdiff, cpu int8 " in text


def test_what_a_row_costs_must_be_known(cascade: Bundle, set_openers: Callable[[dict[str, Any]], None]) -> None:
    set_openers({"cpu": ENGINES["cpu"].open})
    stages = (replace(cascade.stages[0], gmac=None), cascade.stages[1])
    with pytest.raises(Failure, match=r"does not say what a row of its networks costs; export the cascade again$"):
        measure_cascade(replace(cascade, stages=stages), [1], 20, 1, 1, False, (), lambda part: None)
