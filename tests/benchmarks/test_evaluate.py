"""What is found of a model: the rule for defaults, the best samples, the summary."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfgdiff.benchmarks import evaluate as evaluate_module
from cfgdiff.benchmarks.blocks import Measured
from cfgdiff.benchmarks.evaluate import (
    METRICS,
    SWEPT_AT,
    Result,
    accuracy,
    best,
    choose,
    compared,
    evaluate,
    sweep,
    sweep_settings,
)
from cfgdiff.benchmarks.evaluate import STEPS as SWEPT
from cfgdiff.benchmarks.measures import frechet, gaussian
from cfgdiff.benchmarks.report import quality_rows
from cfgdiff.benchmarks.subject import Figure, Real, Subject, even, part
from cfgdiff.runtime import Bundle, Request, load_bundle, resolve
from cfgdiff.runtime.errors import Failure


def measured(labels: list[int], scores: np.ndarray) -> Measured:
    n = len(labels)
    return Measured(
        np.zeros((n, 2, 2, 3), np.uint8),
        np.array(labels),
        np.zeros((n, 4), np.float32),
        np.zeros((n, 0), np.float32),
        scores,
    )


def row(varied: str, frechet: float, accuracy: float | None, **others: Any) -> dict[str, Any]:
    return {
        "varied": varied,
        "frechet": frechet,
        "accuracy": accuracy,
        "guidance": 4.0,
        "interval": None,
        "evaluations": 10,
        **others,
    }


STEPS = [
    row("evaluations", 9.0, 0.9, evaluations=4),
    row("evaluations", 8.39, 0.9, evaluations=6),
    row("evaluations", 8.0, 0.9, evaluations=20),
]


def test_defaults_follow_the_rule() -> None:
    guided = [
        row("guidance", 1.0, 0.5, guidance=1.0),
        row("guidance", 5.0, 0.88, guidance=3.0),
        row("guidance", 9.0, 0.90, guidance=6.0),
    ]
    assert choose([*guided, *STEPS]) == {"guidance": 3.0, "interval": None, "steps": 6}
    inside = row("guidance", 4.0, 0.89, guidance=3.0, interval=(0.3, 10.0))
    assert choose([*guided, inside, *STEPS])["interval"] == (0.3, 10.0)
    guided[1] |= {"accuracy": 0.84}  # too little
    assert choose([*guided, *STEPS])["guidance"] == 6.0
    poor = [row("guidance", 5.0, 0.50, guidance=3.0), row("guidance", 9.0, 0.52, guidance=6.0)]
    assert choose([*poor, *STEPS])["guidance"] == 3.0  # none is good enough: within 3 points of the best
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
    assert (
        one.labels.tolist() == [1, 2, 3]
        and len(one.pictures) == len(one.features) == len(one.logits) == len(one.scores) == 3
    )


def test_even_numbers_reach_from_end_to_end() -> None:
    assert (
        even(100, 5).tolist() == [0, 25, 50, 74, 99] and even(3, 10).tolist() == [0, 1, 2] and even(0, 4).tolist() == []
    )


def subject_of(samples: Measured, n: int, data: Any = None, inception: bool = False) -> Subject:
    """Samples that are there already."""
    extractor = SimpleNamespace(inception=inception, empty=data is None)
    sampling = SimpleNamespace(protocol=lambda settings: {"seed": 0}, cost=lambda settings: None, extractor=extractor)
    subject = Subject(
        sampling, None, n, lambda label, length: nullcontext(lambda done: None), len(samples.labels) // n, data
    )  # type: ignore[arg-type]
    subject.__dict__["samples"] = samples
    return subject


def test_the_summary_holds_means_over_repeats() -> None:
    result = Result(subject_of(measured([0, 1, 0, 1], np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]), 2), ["a note"])
    result.figures = {"frechet": Figure("FID", [1.0, 3.0], 0.5), "kernel_std": Figure(None, [0.1, 0.1])}
    tree = result.summary()
    assert tree["quality"]["frechet"] == {"mean": 2.0, "deviation": 1.0, "of": 2} and tree["held-out pictures"] == {
        "frechet": 0.5
    }
    assert tree["called"] == {"frechet": "FID"}
    assert tree["class accuracy"] == 0.75 and tree["confusion"] == [[1, 1], [0, 2]] and tree["notes"] == ["a note"]
    assert "nearest" not in tree and tree["sweep"] == [] and tree["chosen"] is None
    assert "quality" not in Result(subject_of(measured([0], np.zeros((1, 0), np.float32)), 1), []).summary()


@pytest.mark.parametrize("inception", [False, True])
def test_a_distance_is_taken_of_every_repeat_and_of_held_out_pictures(inception: bool) -> None:
    subject = subject_of(measured([0, 1, 0, 1], np.zeros((4, 0), np.float32)), 2, data=object(), inception=inception)
    subject.samples.features[:] = np.arange(4)[:, None]
    held_out = np.arange(10, 20, dtype=np.float32)[:, None].repeat(4, axis=1)
    subject.__dict__["real"] = Real(held_out, held_out, held_out, held_out, held_out[:, :0], None)  # type: ignore[arg-type]
    figures = compared(lambda features, *_: {"frechet": float(features.mean()), "other": 0.0})(subject)
    assert figures["frechet"] == Figure(
        "FID" if inception else "Fréchet distance", [0.5, 2.5], 14.5
    )  # 10 and 19 stand for all
    assert figures["other"].name is None


def test_a_new_metric_is_one_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(subject: Subject) -> dict[str, Figure]:
        return {"brightness": Figure("mean brightness", [float(subject.samples.pictures.mean())], 127.0)}

    def fails(subject: Subject) -> dict[str, Figure]:
        raise Failure("out of luck")

    monkeypatch.setattr(evaluate_module, "METRICS", METRICS | {"brightness": brightness, "luck": fails})
    subject, notes = subject_of(measured([0, 1], np.zeros((2, 0), np.float32)), 2), list[str]()
    tree = evaluate(subject, None, 0, notes).summary()
    assert (
        tree["quality"] == {"brightness": {"mean": 0.0, "deviation": 0.0, "of": 1}}
        and notes[-1] == "No luck. out of luck."
    )
    assert quality_rows(tree) == [("mean brightness", "0.0000", "127.0000")]


def test_a_model_of_few_steps_is_swept_over_what_it_was_trained_for() -> None:
    turbo = load_bundle("cifar10-turbo")
    cells = sweep_settings(SimpleNamespace(bundle=turbo), seed=0)
    assert [cell.steps for cell in cells if cell.guidance is None] == [1, 2, 3, 4]
    for cell in cells:
        resolve(turbo, replace(cell, classes=["frog"]))


def test_guidance_is_swept_at_the_same_evaluations_whatever_the_default_is(packaged: Bundle) -> None:
    swept = []
    for steps in (3, 50):
        bundle = replace(packaged, defaults=replace(packaged.defaults, steps=steps))
        swept.append(sweep_settings(SimpleNamespace(bundle=bundle), seed=0))
    assert swept[0] == swept[1] and {settings.steps for settings in swept[0] if settings.guidance} == {SWEPT_AT}


def test_the_sweep_measures_the_distance_to_the_teacher() -> None:
    rng = np.random.default_rng(0)
    seen = {steps: rng.standard_normal((64, 2)).astype(np.float32) + steps for steps in SWEPT}

    class Drawn(Subject):
        def draw(self, settings: Request, n: int, label: str) -> Measured:
            scores = np.zeros((n, 0), np.float32)
            return replace(measured([0] * n, scores), features=seen[settings.steps or SWEPT_AT])

    bundle = SimpleNamespace(few_steps=False, defaults=SimpleNamespace(sampler="ddim"))
    names = {"guidance": "guidance", "interval": "interval", "evaluations": "steps", "sampler": "sampler"}
    sampling = SimpleNamespace(
        bundle=bundle, protocol=lambda settings: {key: getattr(settings, name) for key, name in names.items()}
    )
    subject = Drawn(sampling, Request([], seed=0), 64, lambda label, length: nullcontext(lambda done: None))  # type: ignore[arg-type]
    real: Any = SimpleNamespace(reference=gaussian(seen[20]))

    def swept() -> list[dict[str, Any]]:
        rows = sweep(subject, real, 64)
        assert all("teacher" not in row for row in rows if row["varied"] == "guidance")
        return [row for row in rows if row["varied"] == "evaluations"]

    *rows, last = swept()
    assert [row["evaluations"] for row in (*rows, last)] == list(SWEPT) and "teacher" not in last
    for row in rows:  # to its own pictures of the most evaluations
        assert row["teacher"] == pytest.approx(frechet(gaussian(seen[row["evaluations"]]), gaussian(seen[20])))
    subject.teacher = Drawn(sampling, Request([], 4, seed=0), 64, subject.stage)  # type: ignore[arg-type]
    first, *_, last = swept()
    assert first["teacher"] == pytest.approx(0, abs=1e-6) and last["teacher"] > 400
    bundle.few_steps, bundle.guidance_input, bundle.fitted, subject.teacher = True, None, {4: None, 5: None}, None
    assert all("teacher" not in row for row in swept())  # it is not its own teacher
