"""Where pictures go: a folder of PNGs with a grid, one PNG with the grid alone, or an .npz. Every file is whole or absent."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .errors import Failure

GRID_MOST = 1024  # pictures in a grid: the first ones


def grid(pictures: np.ndarray, pad: int = 2, columns: int | None = None) -> np.ndarray:
    """(N, H, W, C) uint8 -> one picture (H', W', C), row by row, by default as square as it gets, white between."""
    n, h, w, c = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[y : y + h, x : x + w] = picture
    return sheet


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, C) uint8 as a PNG."""
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    write_whole(path, lambda file: image.save(file, "PNG"))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, then rename it. Raises `Failure` where that fails."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Failure(f"--out: cannot write {path} ({error.strerror or error}); choose another place or make room") from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


class Output:
    """Takes pictures as they come. `kind` is "folder", ".png" or ".npz", by the name of `path`."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n
        self.kind = path.suffix.lower() if path.suffix.lower() in (".png", ".npz") else "folder"
        self._kept: list[np.ndarray] = []
        if self.kind == "folder" and path.exists() and not path.is_dir():
            raise Failure(f"--out {path}: is a file; expected a folder, or a name ending in .png or .npz")
        if self.kind != "folder" and path.is_dir():
            raise Failure(f"--out {path}: is a folder; expected a name for a {self.kind} file")
        folder = path if self.kind == "folder" else path.parent
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise Failure(f"--out {path}: cannot write in {existing}; choose another place")

    def add(self, first: int, pictures: np.ndarray) -> None:
        """Pictures first .. of the run, (B, H, W, C) uint8."""
        folder = self.path if self.kind == "folder" else self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"--out: cannot make folder {folder} ({error.strerror}); choose another place") from None
        if self.kind == "folder":
            digits = max(4, len(str(self.n - 1)))
            for i, picture in enumerate(pictures, start=first):
                save_png(self.path / f"{i:0{digits}d}.png", picture)
        if self.kind == ".npz" or first < GRID_MOST:
            self._kept.append(pictures)

    def finish(self, labels: np.ndarray) -> None:
        """Write what needs all pictures: the grid, or the arrays `pictures` (N, H, W, C) uint8 and `labels` (N,) int64."""
        kept = np.concatenate(self._kept)
        if self.kind == ".npz":
            write_whole(self.path, lambda file: np.savez_compressed(file, pictures=kept, labels=labels))
        else:
            save_png(self.path / "grid.png" if self.kind == "folder" else self.path, grid(kept[:GRID_MOST]))


@contextmanager
def output(path: Path, n: int, labels: np.ndarray) -> Iterator[Output]:
    """An `Output` for n pictures that is finished when the block ends well."""
    out = Output(path, n)
    yield out
    out.finish(labels)
