"""Labelled pictures in memory, and the order in which a run sees them. They are read in readers.py and plugins."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime.errors import Failure

from . import registry

HELD_OUT_MOST = 1024


@dataclass(frozen=True)
class PictureSet:
    """Pictures (N, C, H, W) uint8 with labels (N,) int64; `test_*` are held out of training.

    `notes` say what a user may not expect of how they were read, a line each.
    """

    name: str
    class_names: list[str]
    pictures: np.ndarray
    labels: np.ndarray
    test_pictures: np.ndarray
    test_labels: np.ndarray
    notes: tuple[str, ...] = ()

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
    if path.is_file():
        return "npz"
    if str(path) == "cifar10" and not path.exists():
        return "cifar10"
    if not path.is_dir():
        expected = "cifar-10-batches-py, one sub-folder of pictures for each class, an .npz file, or the word cifar10"
        raise Failure(f"{path}: no such file or folder; expected {expected} to download it")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return "huggingface"
    return "cifar10" if cifar10_root(path) else "folder"


def cifar10_root(path: Path) -> Path | None:
    """The folder with CIFAR-10's batches: `path`, or cifar-10-batches-py in it."""
    return next((root for root in (path, path / "cifar-10-batches-py") if (root / "batches.meta").is_file()), None)


def hold_out(name: str, class_names: list[str], pictures: np.ndarray, labels: np.ndarray) -> PictureSet:
    """A set of which a twentieth is held out, `HELD_OUT_MOST` pictures at most, the same ones every time."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    count = min(len(labels) // 20, HELD_OUT_MOST)
    test, train = order[:count], np.sort(order[count:])
    return PictureSet(name, class_names, pictures[train], labels[train], pictures[test], labels[test])


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
