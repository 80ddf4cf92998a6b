"""Decoded pictures on disk, keyed by what they were decoded from, so that decoding is done once and memory is shared by all runs."""

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
    """What `decode` gives, from the cache where it is there. Raises `Failure` where the cache cannot be written."""
    folder = cache_folder() / "decoded" / key
    if not (folder / "set.json").is_file():
        _store(folder, decode())
    try:
        described = json.loads((folder / "set.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return PictureSet(described["name"], described["class_names"], **arrays, notes=tuple(described["notes"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise Failure(f"{folder}: damaged cache of decoded pictures ({str(error).splitlines()[0]}); remove the folder") from None


def _store(folder: Path, found: PictureSet) -> None:
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".*"):  # by a process that was killed; what is written now changes within seconds
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(found, name))
        (temporary / "set.json").write_text(json.dumps({"name": found.name, "class_names": found.class_names, "notes": found.notes}))
        if not folder.exists():  # another process may have been faster
            os.rename(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{folder}: cannot keep the decoded pictures ({reason}); make room, or set XDG_CACHE_HOME to another disk") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
