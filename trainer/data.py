"""Labelled pictures in memory, and the order in which a run sees them. They are read in readers.py and plugins."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.shards import shard_number

from . import registry
from .shard_order import find_shards

if TYPE_CHECKING:
    from .shard_order import ShardOrder

HELD_OUT_MOST = 1024


@dataclass(frozen=True)
class PictureSet:
    """Pictures (N, C, H, W) uint8 with labels (N,) int64; `test_*` are held out of training.

    `pictures` may be read as they are indexed, see webdataset.py. `notes` say what a user may not expect of how they
    were read, a line each. `order` is that of pictures in shards; None: each epoch is a permutation of all.
    """

    name: str
    class_names: list[str]
    pictures: np.ndarray
    labels: np.ndarray
    test_pictures: np.ndarray
    test_labels: np.ndarray
    notes: tuple[str, ...] = ()
    order: "ShardOrder | None" = None

    def batch(self, first: int, count: int, seed: int, balanced: bool = False) -> np.ndarray:
        """Pictures first .. first + count - 1 that a run sees. (count,) int64, a function of these numbers alone.

        Args:
            balanced: every class equally often. Raises `Failure` for pictures in shards, which are read in their order.
        """
        if self.order is None:
            if balanced:
                return balanced_indices(self.labels, first, count, seed)
            return batch_indices(len(self.labels), first, count, seed)
        if balanced:
            raise Failure(f"train.balanced: {self.name} is read shard by shard; leave it out, or take a folder or .npz")
        return self.order.indices(first, count, seed)

    def in_memory(self) -> "PictureSet":
        """The same, with pictures as an array."""
        return replace(self, pictures=np.asarray(self.pictures))

    def check(self) -> None:
        """Raises `Failure` where shapes, types or labels are not as described; for data sets of plugins."""
        names = self.class_names
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise Failure(f"data set '{self.name}': class_names must be different words, found {names!r:.80}")
        parts = ("", self.pictures, self.labels), ("test_", self.test_pictures, self.test_labels)
        for what, pictures, labels in parts:
            shape, kind, where = np.shape(pictures), getattr(pictures, "dtype", None), f"data set '{self.name}': {what}"
            if kind != np.uint8 or len(shape) != 4 or shape[1:] != np.shape(self.pictures)[1:]:
                raise Failure(f"{where}pictures must be (N, C, H, W) uint8, found {shape} {kind}")
            if np.shape(labels) != shape[:1] or getattr(labels, "dtype", None) != np.int64:
                made = f"{np.shape(labels)} {getattr(labels, 'dtype', None)}"
                raise Failure(f"{where}labels must be ({shape[0]},) int64, found {made}")
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                expected = f"0 .. {len(self.class_names) - 1}"
                raise Failure(f"{where}labels must lie in {expected}, found {labels.min()} .. {labels.max()}")
        if not len(self.pictures):
            raise Failure(f"data set '{self.name}': no pictures to train on")


def load_data(path: Path, image_size: int, name: str = "auto", options: dict[str, Any] | None = None) -> PictureSet:
    """Read `path` with the data set part of that name. Raises `Failure` naming the file or folder that is wrong."""
    if name == "auto":
        name = reader_of(path)
    data: PictureSet = registry.bound("data", name, options or {})(path, image_size)
    if not isinstance(data, PictureSet):
        raise Failure(f"data set '{name}': expected a cfgdiff.trainer.data.PictureSet, found {type(data).__name__}")
    data.check()
    return data


def load_held_out(path: Path, image_size: int, class_names: list[str], what: str) -> PictureSet:
    """The data set to measure a model of these classes on. Raises `Failure` as `check_held_out`."""
    pictures = load_data(path, image_size)
    check_held_out(pictures, path, class_names, what)
    return pictures


def check_held_out(pictures: PictureSet, path: Path, class_names: list[str], what: str) -> None:
    """Raises `Failure` where the data set holds nothing out, or has other classes than a model."""
    if not len(pictures.test_pictures):
        raise Failure(f"{path}: holds out no pictures (20 or more are needed); take a larger data set")
    if pictures.class_names != class_names:
        has, expected = (", ".join(names) for names in (pictures.class_names, class_names))
        raise Failure(f"{path}: has the classes {has}; the {what} has {expected}")


def reader_of(path: Path) -> str:
    """The name of the part that reads what lies at `path`. Raises `Failure` where nothing lies there."""
    shards = find_shards(path)
    if shards and not path.is_dir():
        return "webdataset"
    if path.is_file():
        return "npz"
    if str(path) == "cifar10" and not path.exists():
        return "cifar10"
    if not path.is_dir():
        expected = "cifar-10-batches-py, one sub-folder of pictures for each class, .tar shards, an .npz file"
        raise Failure(f"{path}: no such file or folder; expected {expected}, or the word cifar10 to download it")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return "huggingface"
    if cifar10_root(path):
        return "cifar10"
    if not shards and any(shard_number(file.name) for file in path.iterdir()):
        remedy = "take --set data.name=huggingface for .parquet, or draw the set with --shard-format tar"
        raise Failure(f"{path}: expected .tar shards, found those of another format; {remedy}")
    # Folders are classes, and the archive lies beside them.
    inside = any(file.is_dir() and file.name[:1] != "." for file in path.iterdir())
    return "webdataset" if shards and not inside else "folder"


def cifar10_root(path: Path) -> Path | None:
    """The folder with CIFAR-10's batches: `path`, or cifar-10-batches-py in it."""
    return next((root for root in (path, path / "cifar-10-batches-py") if (root / "batches.meta").is_file()), None)


def hold_out(name: str, class_names: list[str], pictures: np.ndarray, labels: np.ndarray) -> PictureSet:
    """A set of which a twentieth is held out, see `held_out_of`."""
    train, test = held_out_of(len(labels))
    return PictureSet(name, class_names, pictures[train], labels[train], pictures[test], labels[test])


def held_out_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of n pictures those to train on, in order, and those held out: a twentieth, `HELD_OUT_MOST` at most, always the
    same ones."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(n)
    count = min(n // 20, HELD_OUT_MOST)
    return np.sort(order[count:]), order[:count]


def with_test(name: str, class_names: list[str], pictures: np.ndarray, labels: np.ndarray, test_pictures: np.ndarray,
              test_labels: np.ndarray) -> PictureSet:  # fmt: skip
    """A set with its own held-out part, here shuffled: files lie sorted by class, and the first are measured on."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(test_labels))
    return PictureSet(name, class_names, pictures, labels, test_pictures[order], test_labels[order])


def counted(n: int, thing: str, things: str = "") -> str:
    """``"1 picture"``, ``"1,200 pictures"``."""
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"


@lru_cache(maxsize=2)
def _epoch(n: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)


def batch_indices(n: int, first: int, count: int, seed: int) -> np.ndarray:
    """Pictures first .. first + count - 1 of an endless run over n, shuffled anew every epoch. (count,) int64."""
    parts = []
    for epoch in range(first // n, (first + count - 1) // n + 1):
        order = _epoch(n, epoch, seed)
        parts.append(order[max(0, first - epoch * n) : first + count - epoch * n])
    return np.concatenate(parts)


def balanced_indices(labels: np.ndarray, first: int, count: int, seed: int) -> np.ndarray:
    """As `batch_indices` over the pictures of `labels` (N,), with every class equally often: (count,) int64.

    An endless run of rounds, each with one picture of every class, in an order of its own. A class begins anew when its
    pictures are used up.
    """
    classes = np.unique(labels)
    rounds = range(first // len(classes), (first + count - 1) // len(classes) + 1)
    orders = [np.random.Generator(np.random.PCG64([seed, 1, r])).permutation(len(classes)) for r in rounds]
    drawn = np.empty((len(rounds), len(classes)), np.int64)  # the picture of each round and class
    for i, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        drawn[:, i] = members[batch_indices(len(members), rounds.start, len(rounds), seed + 1 + int(label))]
    start = first - rounds.start * len(classes)
    return np.take_along_axis(drawn, np.stack(orders), axis=1).reshape(-1)[start : start + count]
