"""Decoded pictures on disk, by a hash of their files, so that they are decoded once and all runs share their memory."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure

from .data import PictureSet

ABANDONED = 3600.0  # seconds
ARRAYS = ("pictures", "labels", "test_pictures", "test_labels")
Parts = tuple[dict[str, Any], dict[str, np.ndarray]]


def content_key(files: Iterable[Path], *settings: Any) -> str:
    """A name for what these files hold, in this order, and how it is read."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for file in files:
        digest.update(f"\0{file.parent.name}/{file.name}\0".encode())
        digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def cached(key: str, decode: Callable[[], PictureSet]) -> PictureSet:
    """The result of `decode`, from the cache if it is there. Raises `Failure` for a cache that fails."""

    def make() -> Parts:
        data = decode()
        described = {"name": data.name, "class_names": data.class_names, "notes": data.notes}
        return described, {name: getattr(data, name) for name in ARRAYS}

    described, arrays = cached_arrays(key, ARRAYS, make)
    pictures, labels, test_pictures, test_labels = (arrays[name] for name in ARRAYS)
    notes = tuple(described["notes"])
    return PictureSet(
        described["name"], described["class_names"], pictures, labels, test_pictures, test_labels, notes
    )  # fmt: skip


def cached_arrays(key: str, names: Sequence[str], make: Callable[[], Parts]) -> Parts:
    """The result of `make`, a description and arrays of these names, from the cache if it is there; arrays are mapped.

    The description has the keys name, class_names and notes. Raises `Failure` for a cache that fails.
    """
    folder = cache_folder() / "decoded" / key
    if not (folder / "set.json").is_file():
        _store(folder, *make())
    try:
        described = json.loads((folder / "set.json").read_text())
        if missing := {"name", "class_names", "notes"} - described.keys():
            raise KeyError(min(missing))
        return described, {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise Failure(f"{folder}: damaged cache of decoded pictures ({reason}); remove the folder") from None


def _store(folder: Path, described: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(".*"):  # by processes that were killed: others change theirs within seconds
            if time.time() - abandoned.stat().st_mtime > ABANDONED:
                shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "set.json").write_text(json.dumps(described))
        if not folder.exists():  # another process may have been faster
            os.rename(temporary, folder)
    except OSError as error:
        reason, remedy = error.strerror or error, "make room, or set XDG_CACHE_HOME to another disk"
        raise Failure(f"{folder}: decoded pictures cannot be written ({reason}); {remedy}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
