"""The data sets that are no folders of pictures: CIFAR-10 in its python layout, .npz files, Hugging Face's."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.upscale import reduced

from .cache import cached, content_key
from .data import PictureSet, cifar10_root, counted, hold_out, with_test
from .download import MD5, URL, fetch_cifar10
from .picture_folder import DECODING, square

MOST_CLASSES = 65_536
ALLOWED = {"numpy": ("_reconstruct", "ndarray", "dtype"), "_codecs": ("encode",)}  # in pickles
NUMPY_CORE = "numpy._core" if np.__version__ >= "2" else "numpy.core"


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays, lists and bytes, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module.split(".")[0], ()):
            return super().find_class(module.replace("numpy.core", NUMPY_CORE), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _unpickle(path: Path, *keys: bytes) -> list[Any]:
    """The values of a file of CIFAR-10 under these keys."""
    unpack = "unpack the archive (python version) again"
    try:
        with path.open("rb") as file:
            tree = _ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError:
        raise Failure(f"{path}: is missing; unpack the CIFAR-10 archive (python version) again") from None
    except Exception as error:  # a damaged pickle raises errors of any type
        line = " ".join(str(error).split()) or type(error).__name__
        raise Failure(f"{path}: is not a CIFAR-10 batch ({line:.80}); {unpack}") from None
    if not isinstance(tree, dict) or not set(keys) <= tree.keys():
        named = " and ".join(f"'{key.decode()}'" for key in keys)
        raise Failure(f"{path}: expected a dictionary with {named}, found {type(tree).__name__}; {unpack}")
    return [tree[key] for key in keys]


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) uint8, channel by channel, and (N,) int64."""
    rows, labels = _unpickle(path, b"data", b"labels")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        found = f"{rows.shape} {rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise Failure(f"{path}: data must be (N, 3072) uint8, 32x32 pictures, found {found}; unpack the archive again")
    digits = isinstance(labels, list) and all(isinstance(k, int) and 0 <= k < 10 for k in labels)
    if not digits or len(labels) != len(rows):
        expected = f"{len(rows)} whole numbers of 0 .. 9"
        raise Failure(f"{path}: labels must be {expected}, found {labels!r:.60}; unpack the archive again")
    return rows, np.array(labels, np.int64)


def cifar10(path: Path, image_size: int, *, url: str = URL, md5: str = MD5) -> PictureSet:
    """CIFAR-10 in its python layout (cifar-10-batches-py); downloaded once if `path` is the word cifar10.

    At 16x16 and 8x8, pixels are means, as a super-resolution stage reduces its training pictures.
    """
    named = str(path) == "cifar10" and not path.exists()
    root = fetch_cifar10(cache_folder(), url, md5) if named else cifar10_root(path)
    if root is None:
        raise Failure(f"{path}: no CIFAR-10 there; expected cifar-10-batches-py from the archive (python version)")

    def read(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [_batch(root / name) for name in names]
        rows, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return _resized(rows.reshape(-1, 3, 32, 32), image_size), labels

    meta = root / "batches.meta"
    (names,) = _unpickle(meta, b"label_names")
    words = isinstance(names, list) and all(isinstance(name, bytes) and name.isascii() for name in names)
    if not words or len(names) != 10:
        raise Failure(f"{meta}: label_names must be ten words, found {names!r:.60}; unpack the archive again")
    pictures, labels = read([f"data_batch_{i}" for i in range(1, 6)])
    test_pictures, test_labels = read(["test_batch"])
    notes = () if image_size == 32 else (f"pictures of 32x32 become {image_size}x{image_size}",)
    names = [name.decode() for name in names]
    return PictureSet("cifar10", names, pictures, labels, test_pictures, test_labels, notes)


def _resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """(N, 3, 32, 32) uint8 at another size."""
    if size == 32:
        return pictures
    if 32 % size == 0:
        parts = [reduced(part.astype(np.float32), 32 // size) for part in np.array_split(pictures, 10)]
        return np.rint(np.concatenate(parts)).astype(np.uint8)
    return np.stack([square(Image.fromarray(picture), size) for picture in pictures.transpose(0, 2, 3, 1)])


def npz(path: Path, image_size: int) -> PictureSet:
    """An .npz with `pictures` (N, H, W, 3) uint8, `labels` (N,) and maybe `class_names`; as cfgdiff-run writes it."""
    arrays = _arrays(path, ("pictures", "labels", "class_names"))
    if missing := {"pictures", "labels"} - arrays.keys():
        expected = f"expected pictures (N, H, W, 3) uint8 and labels (N,), found {sorted(arrays)}"
        raise Failure(f"{path}: has no array '{min(missing)}'; {expected}")
    pictures, labels = arrays["pictures"], arrays["labels"]
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
        raise Failure(f"{path}: pictures must be (N, H, W, 3) uint8, found {pictures.shape} {pictures.dtype}")
    if labels.dtype.kind not in "iu" or labels.shape != pictures.shape[:1] or labels.min() < 0:
        expected = f"({len(pictures)},) whole numbers from 0"
        raise Failure(f"{path}: labels must be {expected}, found {labels.shape} {labels.dtype}")
    names, most = _names(path, arrays.get("class_names")), int(labels.max())
    if most >= (limit := len(names) or MOST_CLASSES):
        raise Failure(f"{path}: labels must lie in 0 .. {limit - 1}, found {most}; number the classes from 0 on")
    names, notes = names or [str(k) for k in range(most + 1)], []
    if absent := sorted(set(range(len(names))) - set(labels.tolist())):
        notes.append(
            f"{counted(len(absent), 'class', 'classes')} without a picture: {', '.join(names[k] for k in absent[:5])}"
        )
    if pictures.shape[1:3] == (image_size, image_size):
        planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    else:
        planes = np.stack([square(Image.fromarray(picture), image_size) for picture in pictures])
        (height, width), cut = pictures.shape[1:3], ", cropped to their middle"
        notes.append(f"pictures of {width}x{height} become {image_size}x{image_size}{cut if height != width else ''}")
    return replace(hold_out(path.stem, names, planes, labels.astype(np.int64)), notes=tuple(notes))


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the arrays of an .npz that are there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in names if name in arrays.files}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen kinds for what is damaged, and MemoryError
        line = " ".join(str(error).split()) or type(error).__name__
        raise Failure(f"{path}: not readable as .npz ({line:.80}); write it with numpy.savez") from None


def _names(path: Path, names: np.ndarray | None) -> list[str]:
    if names is None:
        return []
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise Failure(f"{path}: class_names must be (K,) words, found {names.shape} {names.dtype}; leave them out")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names.tolist()]


def huggingface(path: Path, image_size: int, *, split: str = "train", test_split: str | None = None) -> PictureSet:
    """A data set of Hugging Face, by name on the hub or folder; needs a column of pictures and one of class labels."""
    from tqdm import tqdm

    try:
        import datasets
    except ModuleNotFoundError:
        raise Failure("data.name=huggingface needs the package datasets: pip install 'cfgdiff[huggingface]'") from None
    saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
    try:
        loaded = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise Failure(f"{path}: datasets cannot load it ({reason}); expected a name or a folder") from None
    parts = loaded if isinstance(loaded, dict) else {split: loaded}
    for wanted in (split, *([test_split] if test_split else [])):
        if wanted not in parts:
            choices = f"{', '.join(parts)} with data.options={{split: NAME}}"
            raise Failure(f"{path}: no split '{wanted}'; choose from {choices}")
    columns = parts[split].features
    image = next((name for name, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = next((name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise Failure(f"{path}: expected a column of type Image and one of type ClassLabel, found {', '.join(columns)}")

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = tqdm(parts[name], desc=f"decoding {name}", unit="pictures", leave=False, disable=None)
        pictures = [(square(row[image], image_size, str(path)), row[label]) for row in rows]
        return np.stack([picture for picture, _ in pictures]), np.array([k for _, k in pictures], np.int64)

    def decode() -> PictureSet:
        if test_split is None:
            return hold_out(path.name, columns[label].names, *read(split))
        return with_test(path.name, columns[label].names, *read(split), *read(test_split))

    prints = [parts[name]._fingerprint for name in (split, test_split) if name]
    return cached(content_key([], "huggingface", DECODING, image_size, split, test_split, prints), decode)
