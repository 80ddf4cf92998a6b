"""What is found of a model: the rule for defaults, the best samples, the summary."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfgdiff.benchmarks.blocks import Measured
from cfgdiff.benchmarks.evaluate import SWEPT_AT, Found, accuracy, best, choose, even, part, sweep_settings
from cfgdiff.benchmarks.measures import Quality
from cfgdiff.runtime import Bundle


def measured(labels: list[int], scores: np.ndarray) -> Measured:
    n = len(labels)
    return Measured(np.zeros((n, 2, 2, 3), np.uint8), np.array(labels), np.zeros((n, 4), np.float32), np.zeros((n, 0), np.float32), scores)


def row(varied: str, frechet: float, accuracy: float | None, **others: Any) -> dict[str, Any]:
    return {"varied": varied, "frechet": frechet, "accuracy": accuracy, "guidance": 4.0, "interval": None, "evaluations": 10, **others}


STEPS = [
    row("evaluations", 9.0, 0.9, evaluations=4),
    row("evaluations", 8.39, 0.9, evaluations=6),
    row("evaluations", 8.0, 0.9, evaluations=20),
]


def test_defaults_follow_the_rule() -> None:
    guided = [row("guidance", 1.0, 0.5, guidance=1.0), row("guidance", 5.0, 0.88, guidance=3.0), row("guidance", 9.0, 0.90, guidance=6.0)]
    assert choose([*guided, *STEPS]) == {"guidance": 3.0, "interval": None, "steps": 6}
    inside = row("guidance", 4.0, 0.89, guidance=3.0, interval=(0.3, 10.0))
    assert choose([*guided, inside, *STEPS])["interval"] == (0.3, 10.0)
    guided[1] |= {"accuracy": 0.86}  # more than 3 points below the highest
    assert choose([*guided, *STEPS])["guidance"] == 6.0
    assert choose([row("guidance", 2.0, 0.9, interval=None), *STEPS])["interval"] is None
    blind = [row("guidance", 2.0, None, guidance=2.0), row("guidance", 1.0, None, guidance=1.5), *STEPS]
    assert choose(blind)["guidance"] == 1.5  # without a classifier the distance alone decides


def test_the_best_are_those_of_which_the_classifier_is_surest() -> None:
    scores = np.array([[2, 0], [0, 2], [5, 0], [0, 1], [3, 3], [0, 9]], np.float32)
    found = measured([0, 1, 0, 1, 0, 1], scores)
    np.testing.assert_array_equal(best(found, 2), [[2, 0], [5, 1]])
    assert best(found, 9).shape == (2, 3)
    assert accuracy(found) == 1.0 and accuracy(measured([1, 1, 0, 1, 0, 1], scores)) == pytest.approx(5 / 6)
    assert accuracy(measured([0, 1], np.zeros((2, 0), np.float32))) is None


def test_a_part_is_cut_from_every_array() -> None:
    found = measured([0, 1, 2, 3, 4], np.arange(10, dtype=np.float32).reshape(5, 2))
    one = part(found, 1, 3)
    assert one.labels.tolist() == [1, 2, 3] and len(one.pictures) == len(one.features) == len(one.logits) == len(one.scores) == 3


def test_even_numbers_reach_from_end_to_end() -> None:
    assert even(100, 5).tolist() == [0, 25, 50, 74, 99] and even(3, 10).tolist() == [0, 1, 2] and even(0, 4).tolist() == []


def test_the_summary_holds_means_over_repeats() -> None:
    found = Found({"seed": 0}, False, 2, measured([0, 1, 0, 1], np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]), ["a note"])
    found.qualities = [Quality(1.0, 0.1, 0.0, 0.5, 0.5, None, None), Quality(3.0, 0.3, 0.0, 0.5, 0.7, None, None)]
    told = found.summary()
    assert told["quality"]["frechet"] == {"mean": 2.0, "deviation": 1.0, "of": 2} and "score" not in told["quality"]
    assert told["called"]["frechet"] == "Fréchet distance"
    found.inception = True
    assert found.summary()["called"]["frechet"] == "FID"
    assert told["class accuracy"] == 0.75 and told["confusion"] == [[1, 1], [0, 2]] and told["notes"] == ["a note"]
    assert "nearest" not in told and told["sweep"] == [] and told["chosen"] is None


def test_guidance_is_swept_at_the_same_evaluations_whatever_the_default_is(packaged: Bundle) -> None:
    swept = []
    for steps in (3, 50):
        bundle = replace(packaged, defaults=replace(packaged.defaults, steps=steps))
        swept.append(sweep_settings(SimpleNamespace(bundle=bundle), seed=0))
    assert swept[0] == swept[1] and {settings.steps for settings in swept[0] if settings.guidance} == {SWEPT_AT}
