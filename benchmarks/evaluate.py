"""How good a model is, whether it does what it is told, and whether it copies: all that `cfgdiff eval` finds, as plain values.

It knows no flags and draws no figures; see report.py for those.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from cfgdiff.runtime import Request
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.request import Seed

from .alexnet import Weights, embedding, open_vectors, read_linear, weights_digest
from .blocks import BLOCK, Measured, Sampling, Watch
from .features import Extractor, kept, rgb
from .measures import Gaussian, Quality, confusion, frechet, gaussian, quality, quality_names
from .neighbours import Neighbours, nearest

if TYPE_CHECKING:
    from cfgdiff.trainer.data import PictureSet

NEAR = 100  # samples whose neighbours are sought: the paper's number
# Swept: guidance at every noise level and inside intervals of sigma / alpha, and evaluations.
GUIDANCES, INTERVALS, INSIDE, STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0), ((0.1, 3.0), (0.3, 10.0)), (3.0, 6.0), (4, 6, 8, 10, 20)
SWEPT_AT = 10  # evaluations, the same for every guidance: which of them fall inside an interval matters
ACCURACY_SLACK, FRECHET_SLACK = 0.03, 1.05
Stage = Callable[[str, int], AbstractContextManager[Watch]]


@dataclass(frozen=True)
class Real:
    """Training and held-out pictures, (N, H, W, C) uint8; features (N, F) of both, logits of the latter; `reference`: of the former."""

    pictures: np.ndarray
    held_out: np.ndarray
    features: np.ndarray
    held_out_features: np.ndarray
    held_out_logits: np.ndarray
    reference: Gaussian


@dataclass(frozen=True)
class Copies:
    """The nearest training pictures of `pictures`, samples, and for comparison those of as many held-out pictures."""

    pictures: np.ndarray
    samples: Neighbours
    held_out: Neighbours | None


def read_real(data: "PictureSet", extractor: Extractor, stage: Stage) -> Real:
    """The features of a data set; those of training pictures are kept in the cache. Raises `Failure` where it cannot be written."""
    with stage("features of real pictures", len(data.pictures)) as watch:
        training = kept(data.pictures, lambda pictures: extractor.extract(rgb(pictures))[0], extractor.sha256, watch)
    held_out = np.ascontiguousarray(data.test_pictures.transpose(0, 2, 3, 1))
    features, logits = extractor.extract(rgb(held_out))
    return Real(data.pictures.transpose(0, 2, 3, 1), held_out, training, features, logits, gaussian(training))


def draw(sampling: Sampling, settings: Request, n: int, stage: Stage, label: str, shard: tuple[int, int] = (1, 1)) -> Measured | None:
    """The first n pictures, after drawing what is missing; None where a shard leaves blocks to others."""
    missing = [k for k in sampling.missing(settings, n) if k % shard[1] == shard[0] - 1]
    with stage(label, len(missing) * BLOCK * int(sampling.protocol(settings)["evaluations"])) as watch:
        sampling.fill(settings, n, shard, watch)
    return None if sampling.missing(settings, n) else sampling.read(settings, n)


def part(found: Measured, first: int, n: int) -> Measured:
    """Pictures first .. first + n - 1 of it."""
    return Measured(**{one.name: getattr(found, one.name)[first : first + n] for one in fields(found)})


def qualities(found: Measured, real: Real, repeats: int) -> list[Quality]:
    """Of each of `repeats` equal parts of the samples."""
    n = len(found.labels) // repeats
    parts = (part(found, k * n, n) for k in range(repeats))
    return [quality(one.features, one.logits, real.features, real.reference) for one in parts]


def real_quality(real: Real, n: int) -> Quality:
    """What as many held-out pictures, at most n, would get: no model can be expected to do better."""
    chosen = even(len(real.held_out), n)
    return quality(real.held_out_features[chosen], real.held_out_logits[chosen], real.features, real.reference)


def even(n: int, most: int) -> np.ndarray:
    """At most `most` numbers in 0 .. n - 1, evenly spaced: pictures may lie in the order of their classes."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def accuracy(found: Measured) -> float | None:
    """The share of samples that the classifier takes for what was asked; None without one."""
    return float((found.scores.argmax(1) == found.labels).mean()) if found.scores.shape[1] else None


def best(found: Measured, k: int) -> np.ndarray:
    """(K, k) the samples of each class that the classifier is surest of, surest first: the paper's picked samples, picked by a rule."""
    scores = found.scores - found.scores.max(1, keepdims=True)
    sure = scores[np.arange(len(scores)), found.labels] - np.log(np.exp(scores).sum(1))  # log p(asked class)
    rows = [np.flatnonzero(found.labels == label) for label in range(found.scores.shape[1])]
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


def sweep_settings(sampling: Sampling, seed: Seed) -> list[Request]:
    """Guidance, inside intervals too, with `SWEPT_AT` evaluations of the model's plain sampler; then evaluations, as a user gets them."""
    pairs = [(w, (0.0, math.inf)) for w in GUIDANCES] + [(w, interval) for interval in INTERVALS for w in INSIDE]
    plain = sampling.bundle.defaults.sampler
    cells = [Request([], SWEPT_AT, w, seed, plain, interval=interval) for w, interval in pairs]
    return cells + [Request([], steps, seed=seed) for steps in STEPS]


def sweep(sampling: Sampling, real: Real, n: int, seed: Seed, stage: Stage) -> list[dict[str, Any]]:
    """Fréchet distance and class accuracy of n samples with each of `sweep_settings`; a row says what was varied."""
    rows, cells = [], sweep_settings(sampling, seed)
    for i, settings in enumerate(cells):
        found = draw(sampling, settings, n, stage, f"sweep, {i + 1} of {len(cells)}")
        assert found is not None
        told = {key: sampling.protocol(settings)[key] for key in ("guidance", "interval", "evaluations", "sampler")}
        distance = frechet(gaussian(found.features), real.reference)
        varied = "evaluations" if settings.guidance is None else "guidance"
        rows.append(told | {"varied": varied, "n": n, "frechet": distance, "accuracy": accuracy(found)})
    return rows


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Defaults by rule, from the rows of a sweep.

    Guidance and its interval: of the settings whose class accuracy is at most 0.03 below the highest, that of the least Fréchet distance.
    Evaluations: the fewest whose Fréchet distance is at most 5 % above the least.
    """
    guided = [row for row in rows if row["varied"] == "guidance"]
    highest = max(row["accuracy"] or 0 for row in guided)
    obeying = [row for row in guided if (row["accuracy"] or 0) >= highest - ACCURACY_SLACK]
    chosen = min(obeying, key=lambda row: row["frechet"])
    stepped = [row for row in rows if row["varied"] == "evaluations"]
    near = [row for row in stepped if row["frechet"] <= FRECHET_SLACK * min(row["frechet"] for row in stepped)]
    return {"guidance": chosen["guidance"], "interval": chosen["interval"], "steps": min(row["evaluations"] for row in near)}


def evaluate(sampling: Sampling, settings: Request, n: int, repeats: int, data: "PictureSet | None", weights: Weights | None,
             sweep_n: int, threads: int | None, stage: Stage, notes: list[str]) -> tuple["Found", Real | None]:  # fmt: skip
    """All that can be found of n samples, `repeats` times over, and of `sweep_n` for each setting of the sweep (0: none).

    Args:
        data: real pictures, or None: nothing is compared with any, nor where the extractor is empty.
        weights: AlexNet's, for the nearest neighbours, or None: none are sought.
        notes: why something was not sought; one is added where `data` is None.
    """
    samples = draw(sampling, settings, n * repeats, stage, "samples")
    assert samples is not None
    found = Found(sampling.protocol(settings), sampling.extractor.inception, n, samples, notes)
    if data is None:
        notes.append("No --data: no distances, no neighbours, no sweep.")
    if data is None or sampling.extractor.empty:
        return found, None
    real = read_real(data, sampling.extractor, stage)
    with stage("distances", repeats + 1) as watch:
        found.qualities = qualities(samples, real, repeats)
        watch(repeats)
        found.real = real_quality(real, n) if len(real.held_out) > 1 else None
        watch(1)
    if weights is not None:
        try:
            found.copies = copies(samples.pictures[:NEAR], real, weights, threads, stage)
        except Failure as error:
            notes.append(f"No nearest neighbours. {error}.")
    if sweep_n:
        found.sweep = sweep(sampling, real, sweep_n, settings.seed, stage)
        found.chosen = choose(found.sweep)
    return found, real


@dataclass
class Found:
    """All that was found of a model. What was not sought is None or empty, and `notes` say why.

    Attributes:
        protocol: what the samples depend on, see `Sampling.protocol`.
        samples: n pictures `repeats` times over.
        inception: whether distances have the field's names.
        seconds: by stage, of this call; what was there before took none.
    """

    protocol: dict[str, Any]
    inception: bool
    n: int
    samples: Measured
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    qualities: list[Quality] = field(default_factory=list)
    real: Quality | None = None
    copies: Copies | None = None
    sweep: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] | None = None

    def summary(self) -> dict[str, Any]:
        """Its figures as plain values, for report.json and the model card's `evaluation`."""
        tree: dict[str, Any] = {"n": self.n, "protocol": self.protocol, "notes": self.notes}
        if self.qualities:
            every = {key: [getattr(one, key) for one in self.qualities] for key in asdict(self.qualities[0])}
            known = {key: values for key, values in every.items() if None not in values}
            tree["quality"] = {key: {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "of": len(values)}
                               for key, values in known.items()}  # fmt: skip
            tree["called"] = {key: name for key, name in quality_names(self.inception).items() if key in known}
        if self.real:
            tree["held-out pictures"] = asdict(self.real)
        if self.samples.scores.shape[1]:
            counts = confusion(self.samples.labels, self.samples.scores)
            tree["class accuracy"] = accuracy(self.samples)
            tree["confusion"] = counts.tolist()
        if self.copies:
            tree["nearest"] = {"samples": _nearest(self.copies.samples)}
            tree["nearest"] |= {"held-out pictures": _nearest(self.copies.held_out)} if self.copies.held_out else {}
        return tree | {"sweep": self.sweep, "chosen": self.chosen, "seconds": self.seconds}


def _nearest(found: Neighbours) -> dict[str, Any]:
    first = found.distances[:, 0]
    quantiles = dict(zip(("least", "5 %", "median", "95 %", "largest"), np.quantile(first, (0, 0.05, 0.5, 0.95, 1)).tolist(), strict=True))
    return {"n": len(first), "mean": float(first.mean()), **quantiles, "copies": int(found.copied.sum())}
