"""Where pictures go: a folder, one picture, a grid, an .npz or a .tar. It knows no engines and no flags.

Each picture of a folder is complete or absent, so an interrupted run can resume; so is every other file.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from .archives import Note, Npz, Tar
from .errors import BadInput, Failure
from .files import cannot_write, partial_file, remove_abandoned, write_whole
from .generate import to_uint8
from .images import check_note, encoded, grid, load_picture, read_note, save_png

log = logging.getLogger("cfgdiff")
GRID_MOST = 1024  # pictures in a grid: the first ones
GIF_MOST = 64
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # a picture, or a grid of several
SUFFIXES = (*PICTURES, ".gif", ".npz", ".tar")
# Suffixes of files that cannot be written here. A folder may have any other, as run.v2.
REFUSED = {
    ".7z", ".apng", ".avi", ".avif", ".bmp", ".bz2", ".csv", ".exr", ".gz", ".h5", ".hdf5", ".heic", ".heif", ".ico",
    ".jp2", ".json", ".jsonl", ".jxl", ".mkv", ".mov", ".mp4", ".npy", ".parquet", ".pdf", ".pgm", ".pkl", ".ppm",
    ".pt", ".pth", ".rar", ".safetensors", ".svg", ".tbz2", ".tga", ".tgz", ".tif", ".tiff", ".txt", ".txz", ".webm",
    ".xz", ".zip", ".zst",
}  # fmt: skip


class Output(Protocol):
    """Takes pictures in order of their indices."""

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """Pictures (B, H, W, C) uint8 with their numbers in the run, (B,)."""

    def finish(self) -> None:
        """After the last picture."""


class Folder:
    """Pictures one by one, and grid.png of the first ones."""

    def __init__(self, path: Path, labels: np.ndarray, note: Note, kind: str, columns: int | None = None) -> None:
        self.path, self._n, self._note, self._kind, self._columns = path, len(labels), note, kind, columns
        self._digits = max(4, len(str(self._n - 1)))
        for name in (f"*.{kind}", "grid.png"):
            remove_abandoned(path / name)
        own = {self.file(i).name for i in range(self._n)}
        if others := sorted(p.name for p in path.glob(f"*.{kind}") if p.stem.isdecimal() and p.name not in own):
            log.warning("%s: %d pictures of an earlier run are there, too, from %s on", path, len(others), others[0])

    def file(self, index: int) -> Path:
        """Where picture `index` is."""
        return self.path / f"{index:0{self._digits}d}.{self._kind}"

    def missing(self) -> np.ndarray:
        """The indices of missing pictures. Raises `BadInput` where those that are there were made differently."""
        # After a power failure, a picture that was not on the disk yet is an empty file.
        kept = np.array([self.file(i).is_file() and self.file(i).stat().st_size > 0 for i in range(self._n)])
        for i in np.flatnonzero(kept)[[0, -1]] if kept.any() else []:
            check_note(str(self.file(int(i))), read_note(self.file(int(i))), self._note(int(i)))
        return np.flatnonzero(~kept)

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        _make(self.path)
        for i, picture in zip(indices.tolist(), pictures, strict=True):
            write_whole(self.file(i), encoded(picture, self._kind, self._note(i)), one_of_many=True)

    def finish(self) -> None:
        """Read the first pictures back into grid.png."""
        pictures = [
            np.atleast_3d(np.asarray(load_picture(self.file(i), str(self.file(i)))))
            for i in range(min(self._n, GRID_MOST))
        ]
        for i, picture in enumerate(pictures):
            if picture.shape != pictures[0].shape:
                expected = f"expected a picture of {pictures[0].shape}, found {picture.shape}"
                raise Failure(f"{self.file(i)}: {expected}; remove it, then resume the run")
        save_png(self.path / "grid.png", grid(np.stack(pictures), columns=self._columns))


class Single:
    """One picture, with its note."""

    def __init__(self, path: Path, note: Note) -> None:
        self.path, self._note = path, note

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        _make(self.path.parent)
        write_whole(self.path, encoded(pictures[0], kind_of(self.path), self._note(int(indices[0]))))

    def finish(self) -> None:
        """It is written."""


class Grid:
    """A grid of the first pictures."""

    def __init__(self, path: Path, columns: int | None) -> None:
        self.path, self._kept, self._room, self._columns = path, list[np.ndarray](), GRID_MOST, columns

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        self._kept.append(pictures[: self._room].copy())
        self._room -= len(self._kept[-1])

    def finish(self) -> None:
        """Write the grid."""
        _make(self.path.parent)
        write_whole(self.path, encoded(grid(np.concatenate(self._kept), columns=self._columns), kind_of(self.path)))


class Gif(Grid):
    """An animated grid of the first pictures: their denoising, or interpolations of `columns` pictures each."""

    def __init__(self, path: Path, columns: int | None) -> None:
        super().__init__(path, columns)
        self._frames = list[np.ndarray]()

    def see(self, first: int, x0: np.ndarray) -> None:
        """A `Watch` of `sample`: keeps the frames of the first batch, unless interpolations are drawn."""
        if first == 0 and self._columns is None:
            self._frames.append(grid(to_uint8(x0[:GIF_MOST])))

    def finish(self) -> None:
        """Write the frames, the last one for longer."""
        frames, pictures = self._frames, np.concatenate(self._kept)
        if self._columns is not None:
            frames = [grid(pictures[i :: self._columns]) for i in range(self._columns)]
            frames += frames[-2:0:-1]  # and back
        images = [Image.fromarray(frame.squeeze()) for frame in frames]
        durations, buffer = [100] * len(images), io.BytesIO()
        durations[-1] = 1500 if self._columns is None else 100
        images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        _make(self.path.parent)
        write_whole(self.path, buffer.getvalue())


@contextmanager
def output(path: Path, labels: np.ndarray, note: Note, kind: str = "png", columns: int | None = None,
           resume: bool = False) -> Iterator[Output]:  # fmt: skip
    """The output that the name of `path` asks for: a file of one of `SUFFIXES`, else a folder.

    It is finished when the block ends without an error.

    Args:
        labels: of all pictures of the run, (N,) int64.
        note: the note of picture i.
        kind: of the pictures in a folder or .tar, png or webp (lossless).
        columns: of a grid, whose rows are then interpolations.
        resume: continue an interrupted folder or .tar. An interruption then leaves a .tar for the next call.

    Raises:
        Failure: `path` cannot be written.
    """
    check_place(path, resume)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".tar"):
        plain = _plain(path, labels, note, kind, columns)
        yield plain
        plain.finish()
        return
    _make(path.parent)
    try:
        with partial_file(path, resume=resume) as file:
            earlier = path if resume else None
            archive = Npz(file, labels, note) if suffix == ".npz" else Tar(file, labels, note, kind, earlier)
            remove_abandoned(path)
            try:
                yield archive
                archive.finish()
            except BaseException:
                archive.drop()
                raise
    except OSError as error:
        raise cannot_write(path, error) from None


def _plain(path: Path, labels: np.ndarray, note: Note, kind: str, columns: int | None) -> Output:
    if not is_file_name(path):
        return Folder(path, labels, note, kind, columns)
    if path.suffix.lower() == ".gif":
        return Gif(path, columns)
    return Single(path, note) if len(labels) == 1 else Grid(path, columns)


def is_file_name(path: Path) -> bool:
    """Whether a run writes one file there, not a folder."""
    return path.suffix.lower() in SUFFIXES


def kind_of(path: Path) -> str:
    """What `encoded` calls a picture of that name: png, webp or jpg."""
    return path.suffix.lower().lstrip(".").replace("jpeg", "jpg")


def check_place(path: Path, resume: bool = False) -> None:
    """Raises `Failure` where `path` cannot be written or resumed, before any work."""
    suffix = path.suffix.lower()
    if suffix in REFUSED and not path.is_dir():
        expected = f"expected the name of a folder, or one ending in {', '.join(SUFFIXES)}"
        raise BadInput(f"{path}: cannot write a {suffix} file; {expected}")
    if resume and suffix in SUFFIXES and suffix != ".tar":
        raise BadInput(f"resume: only a folder or .tar can be resumed, found {path}; start again without it")
    if suffix not in SUFFIXES and path.exists() and not path.is_dir():
        raise Failure(f"{path}: is a file; expected a folder, or a name ending in {', '.join(SUFFIXES)}")
    if suffix in SUFFIXES and path.is_dir():
        raise Failure(f"{path}: is a folder; expected a name for a {suffix} file")
    folder = path.parent if suffix in SUFFIXES else path
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Failure(f"{path}: cannot write in {existing}; choose another place")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{folder}: the folder cannot be made ({error.strerror}); choose another place") from None
