"""How good a model is, whether its pictures show the class asked for, and whether it copies: all that `cfgdiff eval`
measures.

It knows no flags and draws no figures; see report.py for those.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cfgdiff.runtime import Request
from cfgdiff.runtime.counting import Cost
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.request import Seed

from .alexnet import Weights, embedding, open_vectors, read_linear, weights_digest
from .blocks import Measured, Samples
from .cas import classification_accuracy_score
from .features import kept, rgb
from .measures import (
    Distance,
    confusion,
    frechet,
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_and_recall,
    quality_names,
    score,
)
from .neighbours import Neighbours, nearest
from .subject import Figure, Metric, Real, Stage, Subject, even

NEAR = 100  # samples whose nearest neighbours are searched for: the paper's number
# Swept: guidance at every noise level and inside intervals of sigma / alpha, and evaluations.
GUIDANCES, INTERVALS, INSIDE, STEPS = (
    (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    ((0.1, 3.0), (0.3, 10.0)),
    (3.0, 4.0, 6.0),
    (4, 5, 6, 8, 10, 20),
)
SWEPT_AT = 10  # evaluations, the same for every guidance: which of them fall inside an interval matters
LEAST_ACCURACY, ACCURACY_SLACK, FRECHET_SLACK = 0.85, 0.03, 1.1


def compared(distance: Distance) -> Metric:
    """The distance of each repeat to the training pictures, and for comparison that of as many held-out pictures."""

    def metric(subject: Subject) -> dict[str, Figure]:
        real, names = subject.real, quality_names(subject.sampling.extractor.inception)
        if real is None:
            return {}
        chosen, held_out = even(len(real.held_out), subject.n), dict[str, float]()
        with subject.stage("distances", 0):
            values = [distance(part.features, part.logits, real.features, real.reference) for part in subject.parts()]
            if len(chosen) > 1:
                held_out = distance(
                    real.held_out_features[chosen], real.held_out_logits[chosen], real.features, real.reference
                )
        return {key: Figure(names.get(key), [value[key] for value in values], held_out.get(key)) for key in values[0]}

    return metric


METRICS: dict[
    str, Metric
] = {  # a new one is a function and a line here: report.json, the page and the model card show its figures
    "Fréchet distance": compared(frechet_distance),
    "kernel distance": compared(kernel_distance),
    "precision and recall": compared(precision_and_recall),
    "score": compared(score),
    "classification accuracy score": classification_accuracy_score,
}


@dataclass(frozen=True)
class Copies:
    """The nearest training pictures of `pictures`, samples, and for comparison those of as many held-out pictures."""

    pictures: np.ndarray
    samples: Neighbours
    held_out: Neighbours | None


def accuracy(samples: Measured) -> float | None:
    """The share of samples in which the classifier sees the class asked for; None without a classifier."""
    return float((samples.scores.argmax(1) == samples.labels).mean()) if samples.scores.shape[1] else None


def best(samples: Measured, k: int) -> np.ndarray:
    """(K, k) the samples of each class of which the classifier is surest, the surest first: the paper's best samples,
    by a rule."""
    scores = samples.scores - samples.scores.max(1, keepdims=True)
    sure = scores[np.arange(len(scores)), samples.labels] - np.log(np.exp(scores).sum(1))  # log p(asked class)
    rows = [np.flatnonzero(samples.labels == label) for label in range(samples.scores.shape[1])]
    k = min(k, *(len(row) for row in rows))
    return np.stack([row[np.argsort(-sure[row], kind="stable")[:k]] for row in rows])


def copies(samples: np.ndarray, real: Real, weights: Weights, threads: int | None, stage: Stage) -> Copies:
    """The nearest training pictures of samples (N, H, W, C) and of as many held-out pictures, with AlexNet's weights.

    Raises:
        Failure: LPIPS's weights are missing, or the cache cannot be written.
    """
    vectors = open_vectors(embedding(weights, read_linear(), *samples.shape[1:3]), threads)
    with stage("embedding real pictures", len(real.pictures)) as watch:
        key = f"lpips 0.1 {weights_digest(weights)}"
        embedded = kept(real.pictures.transpose(0, 3, 1, 2), lambda pictures: vectors(rgb(pictures)), key, watch)

    def near(pictures: np.ndarray) -> Neighbours:
        return nearest(vectors(rgb(pictures)), vectors(rgb(pictures[:, :, ::-1])), embedded, min(5, len(embedded)))

    held_out = real.held_out[even(len(real.held_out), len(samples))]
    return Copies(samples, near(samples), near(held_out) if len(held_out) else None)


def sweep_settings(sampling: Samples, seed: Seed) -> list[Request]:
    """Guidance, inside intervals too, with `SWEPT_AT` evaluations of the model's plain sampler; then evaluations, as a
    user gets them. Of a model of few steps only what it was trained for."""
    if sampling.bundle.few_steps:
        known = sampling.bundle.guidance_input or (1.0, 1.0)
        inside = [w for w in GUIDANCES if known[0] <= w <= known[1]]
        few = [Request([], steps, seed=seed) for steps in sorted(sampling.bundle.fitted)]
        return [Request([], guidance=w, seed=seed) for w in inside] + few
    pairs = [(w, (0.0, math.inf)) for w in GUIDANCES] + [(w, interval) for interval in INTERVALS for w in INSIDE]
    plain = sampling.bundle.defaults.sampler
    cells = [Request([], SWEPT_AT, w, seed, plain, interval=interval) for w, interval in pairs]
    return cells + [Request([], steps, seed=seed) for steps in STEPS]


def sweep(subject: Subject, real: Real, n: int) -> list[dict[str, Any]]:
    """Fréchet distance and class accuracy of n samples with each of `sweep_settings`; a row names the varied
    setting. Where evaluations are varied, `teacher` is the distance to the teacher's samples: those of
    `subject.teacher`, or of the most evaluations of a model that has no other."""
    rows, features, stages = list[dict[str, Any]](), list[np.ndarray](), subject.settings.stages
    cells = [replace(cell, stages=stages) for cell in sweep_settings(subject.sampling, subject.settings.seed)]
    for i, settings in enumerate(cells):
        samples = subject.draw(settings, n, f"sweep, {i + 1} of {len(cells)}")
        protocol = subject.sampling.protocol(settings)
        row = {key: protocol[key] for key in ("guidance", "interval", "evaluations", "sampler")}
        distance = frechet(gaussian(samples.features), real.reference)
        varied = "evaluations" if settings.guidance is None else "guidance"
        rows.append(row | {"varied": varied, "n": n, "frechet": distance, "accuracy": accuracy(samples)})
        features.append(samples.features)
    stepped = [(row, seen) for row, seen in zip(rows, features, strict=True) if row["varied"] == "evaluations"]
    if subject.teacher is not None:
        taught = gaussian(subject.teacher.draw(subject.teacher.settings, n, "the teacher's samples").features)
    elif subject.sampling.bundle.few_steps:
        return rows
    else:
        taught = gaussian(stepped.pop()[1])
    for row, seen in stepped:
        row["teacher"] = frechet(gaussian(seen), taught)
    return rows


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Defaults by rule, from the rows of a sweep.

    Guidance and its interval: of the settings with a class accuracy of at least 0.85 (where none has that, at most 0.03
    below the highest), that of the least Fréchet distance. More accuracy is not better: it comes with less variety.
    Evaluations: the fewest whose Fréchet distance is at most a tenth above the least.
    """
    guided = [row for row in rows if row["varied"] == "guidance"]
    highest = max(row["accuracy"] or 0 for row in guided)
    enough = min(LEAST_ACCURACY, highest - ACCURACY_SLACK)
    obeying = [row for row in guided if (row["accuracy"] or 0) >= enough]
    chosen = min(obeying, key=lambda row: row["frechet"])
    stepped = [row for row in rows if row["varied"] == "evaluations"]
    near = [row for row in stepped if row["frechet"] <= FRECHET_SLACK * min(row["frechet"] for row in stepped)]
    steps = min(row["evaluations"] for row in near)
    return {"guidance": chosen["guidance"], "interval": chosen["interval"], "steps": steps}


def evaluate(subject: Subject, weights: Weights | None, sweep_n: int, notes: list[str]) -> "Result":
    """Take all `METRICS`, search for the nearest neighbours, and sweep.

    Args:
        weights: AlexNet's, for the nearest neighbours; None: no search.
        sweep_n: samples for each setting of the sweep; 0: none.
        notes: why something is missing; more are appended.
    """
    result, real = Result(subject, notes), subject.real
    result.cost = subject.sampling.cost(subject.settings)
    if subject.data is None:
        notes.append("No --data: no distances, no neighbours, no sweep.")
    for name, metric in METRICS.items():
        try:
            result.figures |= metric(subject)
        except Failure as error:
            notes.append(f"No {name}. {error}.")
    if real is None:
        return result
    if weights is not None:
        try:
            result.copies = copies(subject.samples.pictures[:NEAR], real, weights, subject.threads, subject.stage)
        except Failure as error:
            notes.append(f"No nearest neighbours. {error}.")
    if sweep_n:
        result.sweep = sweep(subject, real, sweep_n)
        result.chosen = choose(result.sweep)
    return result


@dataclass
class Result:
    """The result of an evaluation. What was not measured is None or empty, and `notes` say why.

    Attributes:
        figures: of `METRICS`, by their keys.
        seconds: by stage, of this call; samples that were there took none.
        cost: of a picture; None where the samples were drawn elsewhere.
    """

    subject: Subject
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    copies: Copies | None = None
    sweep: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] | None = None
    cost: Cost | None = None

    def summary(self) -> dict[str, Any]:
        """Its figures as plain values, for report.json and the model card's `evaluation`."""
        subject, figures = self.subject, self.figures
        tree: dict[str, Any] = {
            "n": subject.n,
            "protocol": subject.sampling.protocol(subject.settings),
            "cost": None if self.cost is None else asdict(self.cost),
            "notes": self.notes,
        }
        if figures:
            tree["quality"] = {key: {"mean": float(np.mean(figure.values)), "deviation": float(np.std(figure.values)),
                                     "of": len(figure.values)} for key, figure in figures.items()}  # fmt: skip
            tree["called"] = {key: figure.name for key, figure in figures.items() if figure.name}
            tree["held-out pictures"] = {key: figure.real for key, figure in figures.items() if figure.real is not None}
        if subject.samples.scores.shape[1]:
            tree["class accuracy"] = accuracy(subject.samples)
            tree["confusion"] = confusion(subject.samples.labels, subject.samples.scores).tolist()
        if self.copies:
            tree["nearest"] = {"samples": _nearest(self.copies.samples)}
            tree["nearest"] |= {"held-out pictures": _nearest(self.copies.held_out)} if self.copies.held_out else {}
        return tree | {"sweep": self.sweep, "chosen": self.chosen, "seconds": self.seconds}


def _nearest(neighbours: Neighbours) -> dict[str, Any]:
    first = neighbours.distances[:, 0]
    quantiles = dict(
        zip(
            ("least", "5 %", "median", "95 %", "largest"),
            np.quantile(first, (0, 0.05, 0.5, 0.95, 1)).tolist(),
            strict=True,
        )
    )
    return {"n": len(first), "mean": float(first.mean()), **quantiles, "copies": int(neighbours.copied.sum())}
