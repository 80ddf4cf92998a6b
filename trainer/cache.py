"""Decoded pictures on disk, by a hash of their files, so that they are decoded once and all runs share their memory."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure

from .data import PictureSet

ABANDONED = 3600.0  # seconds
ARRAYS = ("pictures", "labels", "test_pictures", "test_labels")


def content_key(files: Iterable[Path], *settings: Any) -> str:
    """A name for what these files hold, in this order, and how it is read."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for file in files:
        digest.update(f"\0{file.parent.name}/{file.name}\0".encode())
        digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def cached(key: str, decode: Callable[[], PictureSet]) -> PictureSet:
    """The result of `decode`, from the cache if it is there. Raises `Failure` for a cache that fails."""
    folder = cache_folder() / "decoded" / key
    if not (folder / "set.json").is_file():
        _store(folder, decode())
    try:
        described = json.loads((folder / "set.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return PictureSet(described["name"], described["class_names"], **arrays, notes=tuple(described["notes"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise Failure(f"{folder}: damaged cache of decoded pictures ({reason}); remove the folder") from None


def _store(folder: Path, data: PictureSet) -> None:
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(".*"):  # by processes that were killed: others change theirs within seconds
            if time.time() - abandoned.stat().st_mtime > ABANDONED:
                shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(data, name))
        described = {"name": data.name, "class_names": data.class_names, "notes": data.notes}
        (temporary / "set.json").write_text(json.dumps(described))
        if not folder.exists():  # another process may have been faster
            os.rename(temporary, folder)
    except OSError as error:
        reason, remedy = error.strerror or error, "make room, or set XDG_CACHE_HOME to another disk"
        raise Failure(f"{folder}: decoded pictures cannot be written ({reason}); {remedy}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
