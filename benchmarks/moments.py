"""Sums over the pictures of finished shards, from which the Fréchet distance and the class accuracy follow.

They merge: the parts of a set that several machines measured give what one machine would have measured.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.places import Place
from cfgdiff.runtime.shards import Manifest, read_shard

from .blocks import BLOCK
from .features import Classifier, Extractor, rgb
from .measures import Gaussian, confusion


@dataclass(frozen=True)
class Moments:
    """Of `count` features: mean (F,), and scatter (F, F), the sum of (x - mean)(x - mean)^T. float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Of (N, F) features, N >= 1."""
        mean = features.mean(0, dtype=np.float64)
        centred = features.astype(np.float64) - mean
        return cls(len(features), mean, centred.T @ centred)

    def merged(self, other: "Moments") -> "Moments":
        """Of both together (Chan, Golub & LeVeque 1983): unlike plain sums of products, nothing large cancels."""
        count, step = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance, as `measures.gaussian`."""
        return self.mean, self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Statistics:
    """What was measured of some shards of a set.

    Attributes:
        protocol: all that the sums depend on beside the shards, in plain values.
        shards: the sha256 of those that are in it, by their numbers.
        counts: (K, K) pictures by the class asked for and the class seen; (0, 0) without a classifier.
    """

    protocol: dict[str, Any]
    shards: dict[int, str]
    moments: Moments
    counts: np.ndarray

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises `Failure`."""
        described = json.dumps({"protocol": self.protocol, "shards": self.shards})
        moments, buffer = self.moments, io.BytesIO()
        np.savez(buffer, described=np.array(described), count=moments.count, mean=moments.mean,
                 scatter=moments.scatter, counts=self.counts)  # fmt: skip
        write_whole(path, buffer.getvalue())

    def merged(self, other: "Statistics", a: str, b: str) -> "Statistics":
        """Of the shards of both, which are called a and b. Raises `Failure` where they are not two parts of one set."""
        for key in {**self.protocol, **other.protocol}:
            if (one := self.protocol.get(key)) != (two := other.protocol.get(key)):
                raise Failure(f"{b}: has {key} {two!s:.80}, where {a} has {one!s:.80}; measure all parts alike")
        if both := sorted(self.shards.keys() & other.shards.keys()):
            raise Failure(f"{b}: counts shard {both[0]}, as {a} does; leave one of them out")
        shards = dict(sorted({**self.shards, **other.shards}.items()))
        return Statistics(
            self.protocol, shards, self.moments.merged(other.moments), self.counts + other.counts
        )  # fmt: skip

    @property
    def accuracy(self) -> float | None:
        """The share of pictures in which the classifier sees the class asked for; None without a classifier."""
        return float(np.trace(self.counts) / self.counts.sum()) if self.counts.size else None


def load_statistics(path: Path) -> Statistics:
    """Read what `Statistics.save` wrote. Raises `Failure` for any other file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            described = json.loads(str(arrays["described"]))
            moments = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
            shards = {int(k): str(sha256) for k, sha256 in described["shards"].items()}
            if moments.scatter.shape != moments.mean.shape * 2 or moments.count < 1:
                raise ValueError("sums of other shapes")
            return Statistics(dict(described["protocol"]), shards, moments, arrays["counts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Failure(f"{path}: not readable as statistics ({reason}); write them with `stats`") from None


def merge_files(paths: Sequence[Path]) -> Statistics:
    """The statistics in all files together. Raises `Failure` as `Statistics.merged`."""
    total = load_statistics(paths[0])
    for path in paths[1:]:
        total = total.merged(load_statistics(path), str(paths[0]), str(path))
    return total


def measure_shards(
    path: Path, place: Place, shards: Sequence[Manifest], protocol: dict[str, Any], extractor: Extractor,
    classifier: Classifier | None, watch: Callable[[int], object] = lambda n: None,
) -> Statistics:  # fmt: skip
    """Add to the statistics in a file those of the shards that it lacks, one after the other.

    Args:
        protocol: its entry `n`, where it is not None, is the number of pictures of the set to count.
        watch: gets the number of pictures of each shard.

    Raises:
        Failure: a shard is damaged or changed, the file has statistics of something else, or cannot be written.
    """
    total = load_statistics(path) if path.exists() else None
    if total and total.protocol != json.loads(json.dumps(protocol)):
        raise Failure(f"{path}: has statistics of another set, model or way to measure; give another file")
    for manifest in shards:
        if total and manifest.shard in total.shards:
            if total.shards[manifest.shard] != manifest.sha256:
                raise Failure(f"{path}: shard {manifest.shard} was made anew since; remove the file and measure again")
            watch(manifest.count)
            continue
        n = protocol["n"] if protocol["n"] is not None else manifest.first + manifest.count
        part = _measured(place, manifest, n - manifest.first, extractor, classifier)
        one = Statistics(json.loads(json.dumps(protocol)), {manifest.shard: manifest.sha256}, *part)
        total = one if total is None else total.merged(one, str(path), manifest.file)
        total.save(path)
        watch(manifest.count)
    if total is None:
        raise Failure(f"{place}: none of its shards is in this share; give fewer shares")
    return total


def _measured(
    place: Place, manifest: Manifest, most: int, extractor: Extractor, classifier: Classifier | None
) -> tuple[Moments, np.ndarray]:
    """Of at most `most` pictures of a shard."""
    pictures, labels = (array[:most] for array in read_shard(place, manifest))
    features, counts = list[np.ndarray](), np.zeros((0, 0), np.int64)
    for first in range(0, len(pictures), BLOCK):
        part = pictures[first : first + BLOCK]
        features.append(extractor.extract(rgb(part))[0])
        if classifier is not None:
            seen = confusion(labels[first : first + BLOCK], classifier.classify(part)[1])
            counts = counts + seen if counts.size else seen
    return Moments.of(np.concatenate(features)), counts


def selected(shards: Sequence[Manifest], n: int | None, share: tuple[int, int]) -> list[Manifest]:
    """The shards of the first n pictures (None: all) whose turn it is in share (K, M): k with k mod M = K - 1."""
    return [
        manifest for manifest in shards
        if (n is None or manifest.first < n) and manifest.shard % share[1] == share[0] - 1
    ]  # fmt: skip
