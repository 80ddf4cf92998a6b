"""The subject of `cfgdiff eval`: samples, and the real pictures that they are compared with; and what a metric of them
is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cfgdiff.runtime import Request

from .blocks import BLOCK, Measured, Samples, Watch
from .features import kept, rgb
from .measures import Gaussian, gaussian

if TYPE_CHECKING:
    from cfgdiff.trainer.data import PictureSet

Stage = Callable[
    [str, int], AbstractContextManager[Watch]
]  # a name, seconds being summed by what stands before its comma, and a length


@dataclass(frozen=True)
class Real:
    """Training and held-out pictures, (N, H, W, C) uint8; features (N, F) of both, logits of the latter; `reference`:
    of the former."""

    pictures: np.ndarray
    held_out: np.ndarray
    features: np.ndarray
    held_out_features: np.ndarray
    held_out_logits: np.ndarray
    reference: Gaussian


@dataclass
class Subject:
    """Samples of a model, `n` of them `repeats` times over.

    Attributes:
        data: real pictures, or None: then the samples are compared with nothing.
        cas_n: generated pictures to train a classifier on, see cas.py; 0 for none.
        stage: opens a progress bar.
        teacher: samples of the model that this one learned from, to which the sweep measures a distance.
    """

    sampling: Samples
    settings: Request
    n: int
    stage: Stage
    repeats: int = 1
    data: "PictureSet | None" = None
    cas_n: int = 0
    threads: int | None = None
    teacher: "Subject | None" = None

    @property
    def total(self) -> int:
        """The samples that must be drawn."""
        return max(self.n * self.repeats, self.cas_n)

    @cached_property
    def samples(self) -> Measured:
        """The n `repeats` samples, drawn where they are missing."""
        return self.draw(self.settings, self.n * self.repeats, "samples")

    @cached_property
    def real(self) -> Real | None:
        """The features of `data`; those of training pictures are kept in the cache. None without data, and without an
        extractor.

        Raises:
            Failure: the cache cannot be written.
        """
        data, extractor = self.data, self.sampling.extractor
        if data is None or extractor.empty:
            return None
        with self.stage("features of real pictures", len(data.pictures)) as watch:
            training = kept(
                data.pictures, lambda pictures: extractor.extract(rgb(pictures))[0], extractor.sha256, watch
            )
        held_out = np.ascontiguousarray(data.test_pictures.transpose(0, 2, 3, 1))
        features, logits = extractor.extract(rgb(held_out))
        return Real(data.pictures.transpose(0, 2, 3, 1), held_out, training, features, logits, gaussian(training))

    def parts(self) -> list[Measured]:
        """The samples of each repeat."""
        return [part(self.samples, k * self.n, self.n) for k in range(self.repeats)]

    def draw(self, settings: Request, n: int, label: str) -> Measured:
        """The first n pictures, drawn where they are missing."""
        self.fill(settings, n, label)
        return self.sampling.read(settings, n)

    def fill(self, settings: Request, n: int, label: str, shard: tuple[int, int] = (1, 1)) -> None:
        """Draw what is missing of the first n pictures, in shard (K, M) one of M shares."""
        missing = [k for k in self.sampling.missing(settings, n) if k % shard[1] == shard[0] - 1]
        with self.stage(label, len(missing) * BLOCK * self.sampling.evaluations(settings)) as watch:
            self.sampling.fill(settings, n, shard, watch)


@dataclass(frozen=True)
class Figure:
    """A number of a report.

    Attributes:
        name: None for one that is only written to report.json.
        values: of each repeat of the samples, or of all of them.
        real: of real pictures in their place: no model can be expected to do better. None where it is not known.
    """

    name: str | None
    values: list[float]
    real: float | None = None


Metric = Callable[[Subject], dict[str, Figure]]
"""Takes figures of a subject, by their keys in report.json; none where it lacks what they need. A `Failure` becomes a
note."""


def part(samples: Measured, first: int, n: int) -> Measured:
    """Samples first .. first + n - 1."""
    return Measured(**{column.name: getattr(samples, column.name)[first : first + n] for column in fields(samples)})


def even(n: int, most: int) -> np.ndarray:
    """At most `most` numbers in 0 .. n - 1, evenly spaced: pictures may lie in the order of their classes."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)
