"""The built-in data sets: CIFAR-10 in its official python layout, a folder with one sub-folder of pictures a class, an .npz of arrays."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cfgdiff.runtime.errors import Failure

from .data import PictureSet, cifar10_root, hold_out

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
    root = cifar10_root(path)
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


def folder(path: Path, image_size: int, *, skip_broken: bool = False) -> PictureSet:
    """One sub-folder of pictures for each class, in any size, mode and format that Pillow reads."""
    if not path.is_dir():
        raise Failure(f"--data {path}: no such folder; expected one sub-folder of pictures for each class")
    classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(file, k) for k, inside in enumerate(classes) for file in sorted(inside.rglob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise Failure(f"--data {path}: no pictures found; expected a sub-folder for each class, with {', '.join(sorted(SUFFIXES))} files")
    pictures, labels, broken = [], [], list[str]()
    for file, label in files:
        try:
            with Image.open(file) as picture:
                pictures.append(_square(picture, image_size))
            labels.append(label)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{file} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
    if broken and not skip_broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise Failure(f"--data: cannot read {named}; replace or remove what is broken, or leave it out with --skip-broken")
    if empty := [inside.name for k, inside in enumerate(classes) if k not in labels]:
        raise Failure(f"--data {path}: no readable pictures in class folder '{empty[0]}'; fill or remove it")
    return hold_out(path.resolve().name, [c.name for c in classes], np.stack(pictures), np.array(labels, np.int64))


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """(3, size, size) uint8: centre crop, then antialiased resize."""
    fitted = ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted).transpose(2, 0, 1)


def npz(path: Path, image_size: int) -> PictureSet:
    """An .npz with `pictures` (N, H, W, 3) uint8 and `labels` (N,), and `class_names` where they have names; as cfgdiff-run writes it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise Failure(f"--data {path}: not readable as .npz ({str(error).splitlines()[0]}); write it with numpy.savez") from None
    if missing := {"pictures", "labels"} - found.keys():
        expected = f"expected pictures (N, H, W, 3) uint8 and labels (N,), found {sorted(found)}"
        raise Failure(f"--data {path}: has no array '{min(missing)}'; {expected}")
    pictures, labels = found["pictures"], found["labels"]
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
        raise Failure(f"--data {path}: pictures must be (N, H, W, 3) uint8, found {pictures.shape} {pictures.dtype}")
    if labels.dtype.kind not in "iu" or labels.shape != pictures.shape[:1] or labels.min() < 0:
        raise Failure(f"--data {path}: labels must be ({len(pictures)},) whole numbers from 0, found {labels.shape} {labels.dtype}")
    names = [str(name) for name in found["class_names"]] if "class_names" in found else [str(k) for k in range(int(labels.max()) + 1)]
    if pictures.shape[1:3] == (image_size, image_size):
        planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    else:
        planes = np.stack([_square(Image.fromarray(picture), image_size) for picture in pictures])
    return hold_out(path.stem, names, planes, labels.astype(np.int64))
