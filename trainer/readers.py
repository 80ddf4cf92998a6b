"""The built-in data sets: CIFAR-10 in its official python layout, a folder with one sub-folder of pictures a class, an .npz of arrays."""

import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import cropped

from .cache import cached, content_key
from .data import PictureSet, cifar10_root, hold_out
from .download import MD5, URL, fetch_cifar10

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


def cifar10(path: Path, image_size: int, *, url: str = URL, md5: str = MD5) -> PictureSet:
    """CIFAR-10 in its official python layout (cifar-10-batches-py); where `path` is the word cifar10, downloaded once."""
    root = fetch_cifar10(cache_folder(), url, md5) if str(path) == "cifar10" and not path.exists() else cifar10_root(path)
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
    key = content_key((file for file, _ in files), "folder", image_size, skip_broken, [c.name for c in classes])
    return cached(key, lambda: _decode(path, files, [c.name for c in classes], image_size, skip_broken))


def _decode(path: Path, files: list[tuple[Path, int]], classes: list[str], image_size: int, skip_broken: bool) -> PictureSet:
    from tqdm import tqdm

    def read(file: Path) -> np.ndarray | str:
        try:
            with Image.open(file) as picture:
                return _square(picture, image_size)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{file} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    with ThreadPoolExecutor() as pool:
        found = list(
            tqdm(pool.map(read, (file for file, _ in files)), total=len(files), desc="decoding", unit="pictures", leave=False, disable=None)
        )
    broken = [answer for answer in found if isinstance(answer, str)]
    if broken and not skip_broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise Failure(f"--data: cannot read {named}; replace or remove what is broken, or leave it out with --skip-broken")
    read_well = [(picture, label) for picture, (_, label) in zip(found, files, strict=True) if not isinstance(picture, str)]
    pictures, labels = [picture for picture, _ in read_well], np.array([label for _, label in read_well], np.int64)
    if empty := [name for k, name in enumerate(classes) if k not in labels]:
        raise Failure(f"--data {path}: no readable pictures in class folder '{empty[0]}'; fill or remove it")
    return hold_out(path.resolve().name, classes, np.stack(pictures), labels)


def _square(picture: Image.Image, size: int) -> np.ndarray:
    """(3, size, size) uint8: centre crop, then antialiased resize."""
    return cropped(picture, size, size).transpose(2, 0, 1)


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


def huggingface(path: Path, image_size: int, *, split: str = "train", test_split: str | None = None) -> PictureSet:
    """A data set of Hugging Face `datasets`, by its name on the hub or its folder; needs a column of pictures and one of class labels."""
    from tqdm import tqdm

    try:
        import datasets
    except ModuleNotFoundError:
        raise Failure("data.name=huggingface needs the package datasets: pip install 'cfgdiff[huggingface]'") from None
    saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
    try:
        whole = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise Failure(f"--data {path}: datasets cannot load it ({str(error).splitlines()[0]}); expected a name or a folder") from None
    parts = whole if isinstance(whole, dict) else {split: whole}
    for wanted in (split, *([test_split] if test_split else [])):
        if wanted not in parts:
            raise Failure(f"--data {path}: no split '{wanted}'; choose from {', '.join(parts)} with data.options={{split: NAME}}")
    columns = parts[split].features
    image = next((name for name, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = next((name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise Failure(f"--data {path}: expected a column of type Image and one of type ClassLabel, found {', '.join(columns)}")

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = tqdm(parts[name], desc=f"decoding {name}", unit="pictures", leave=False, disable=None)
        pictures = [(_square(row[image], image_size), row[label]) for row in rows]
        return np.stack([picture for picture, _ in pictures]), np.array([k for _, k in pictures], np.int64)

    def decode() -> PictureSet:
        if test_split is None:
            return hold_out(path.name, columns[label].names, *read(split))
        return PictureSet(path.name, columns[label].names, *read(split), *read(test_split))

    prints = [parts[name]._fingerprint for name in (split, test_split) if name]
    return cached(content_key([], "huggingface", image_size, split, test_split, prints), decode)
