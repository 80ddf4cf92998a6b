"""Labelled pictures in memory: CIFAR-10 in its official python layout, or a folder with one sub-folder of pictures a class.

It knows nothing of training; `batch_indices` is the order in which a run sees the pictures, a pure function of its arguments.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cfgdiff.runtime.errors import Failure

from . import registry

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
HELD_OUT_MOST = 1024


@dataclass(frozen=True)
class PictureSet:
    """Pictures (N, C, H, W) uint8 with labels (N,) int64; `test_*` are held out of training."""

    name: str
    class_names: list[str]
    pictures: np.ndarray
    labels: np.ndarray
    test_pictures: np.ndarray
    test_labels: np.ndarray

    def check(self) -> None:
        """Raises `Failure` where shapes, types or labels are not as described; for data sets of plugins."""
        for what, pictures, labels in (("", self.pictures, self.labels), ("test_", self.test_pictures, self.test_labels)):
            shape, kind, where = np.shape(pictures), getattr(pictures, "dtype", None), f"data set '{self.name}': {what}"
            if kind != np.uint8 or len(shape) != 4 or shape[1:] != self.pictures.shape[1:]:
                raise Failure(f"{where}pictures must be (N, C, H, W) uint8, found {shape} {kind}")
            if np.shape(labels) != shape[:1] or getattr(labels, "dtype", None) != np.int64:
                raise Failure(f"{where}labels must be ({shape[0]},) int64, found {np.shape(labels)} {getattr(labels, 'dtype', None)}")
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                raise Failure(f"{where}labels must lie in 0 .. {len(self.class_names) - 1}, found {labels.min()} .. {labels.max()}")
        if not len(self.pictures):
            raise Failure(f"data set '{self.name}': no pictures to train on")


def load_data(path: Path, image_size: int, name: str = "auto", options: dict[str, Any] | None = None) -> PictureSet:
    """Read `path` with the data set part of that name. Raises `Failure` naming the file or folder that is not as it must be."""
    if name == "auto":
        if not path.is_dir():
            raise Failure(f"--data {path}: no such folder; expected cifar-10-batches-py or one sub-folder of pictures for each class")
        name = "folder" if _cifar10_root(path) is None else "cifar10"
    found: PictureSet = registry.bound("data", name, options or {})(path, image_size)
    if not isinstance(found, PictureSet):
        raise Failure(f"the data set '{name}' gave {type(found).__name__}; expected a cfgdiff.trainer.data.PictureSet")
    found.check()
    return found


def _cifar10_root(path: Path) -> Path | None:
    return next((root for root in (path, path / "cifar-10-batches-py") if (root / "batches.meta").is_file()), None)


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays, lists and bytes, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}:
            return super().find_class(module.replace("numpy.core", "numpy._core") if np.__version__ >= "2" else module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            tree: dict[bytes, Any] = _ArraysOnly(file, encoding="bytes").load()
            return tree
    except FileNotFoundError:
        raise Failure(f"--data: {path} is missing; unpack the CIFAR-10 archive (python version) again") from None
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError) as error:
        raise Failure(f"--data: {path} is not a CIFAR-10 batch ({error}); unpack the archive (python version) again") from None


def cifar10(path: Path, image_size: int) -> PictureSet:
    """CIFAR-10 in its official python layout (cifar-10-batches-py)."""
    root = _cifar10_root(path)
    if root is None:
        raise Failure(f"--data {path}: no CIFAR-10 there; expected cifar-10-batches-py as unpacked from the archive (python version)")
    if image_size != 32:
        raise Failure(f"--data {root}: CIFAR-10 is 32x32, but train.image_size is {image_size}; set train.image_size=32")

    def read(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [_unpickle(root / name) for name in names]
        try:
            rows = np.concatenate([batch[b"data"] for batch in batches])  # (N, 3072) uint8, channel by channel
            labels = np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int64)
            return rows.reshape(-1, 3, 32, 32), labels
        except (KeyError, ValueError, TypeError):
            raise Failure(f"--data {root}: expected batches of 32x32 pictures with labels; unpack the archive again") from None

    names = [name.decode() for name in _unpickle(root / "batches.meta")[b"label_names"]]
    pictures, labels = read([f"data_batch_{i}" for i in range(1, 6)])
    test_pictures, test_labels = read(["test_batch"])
    return PictureSet("cifar10", names, pictures, labels, test_pictures, test_labels)


def folder(path: Path, image_size: int) -> PictureSet:
    """One sub-folder of pictures for each class, in any size, mode and format that Pillow reads."""
    if not path.is_dir():
        raise Failure(f"--data {path}: no such folder; expected one sub-folder of pictures for each class")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(file, k) for k, inside in enumerate(classes) for file in sorted(inside.rglob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise Failure(f"--data {path}: no pictures found; expected a sub-folder for each class, with {', '.join(sorted(SUFFIXES))} files")
    if empty := [inside.name for k, inside in enumerate(classes) if not any(label == k for _, label in files)]:
        raise Failure(f"--data {path}: no pictures in class folder '{empty[0]}'; fill or remove it")
    pictures = np.stack([_read_picture(file, image_size) for file, _ in files])
    labels = np.array([label for _, label in files], np.int64)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(files))
    held_out = min(len(files) // 20, HELD_OUT_MOST)  # the same pictures every time
    test, train = order[:held_out], np.sort(order[held_out:])
    return PictureSet(path.resolve().name, [c.name for c in classes], pictures[train], labels[train], pictures[test], labels[test])


def _read_picture(file: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8: centre crop, then antialiased resize."""
    try:
        with Image.open(file) as picture:
            square = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Failure(f"--data: cannot read picture {file} ({str(error).splitlines()[0]}); replace or remove it") from None
    return np.asarray(square).transpose(2, 0, 1)


def batch_indices(n: int, first: int, count: int, seed: int) -> np.ndarray:
    """The pictures first .. first + count - 1 of an endless run over n pictures, shuffled anew every epoch. (count,) int64."""
    parts = []
    for epoch in range(first // n, (first + count - 1) // n + 1):
        order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
        parts.append(order[max(0, first - epoch * n) : first + count - epoch * n])
    return np.concatenate(parts)
