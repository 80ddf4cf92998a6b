"""Where a run's pictures go: a folder, a grid, an .npz or a .tar, in constant memory. It knows no engines and no flags but --out.

A folder's pictures are whole or absent one by one, so that a run can be gone on with; every other file is whole or absent as a whole.
"""

import io
import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from .errors import BadInput, Failure
from .generate import to_uint8
from .images import encoded, grid, read_note, save_png, write_whole

log = logging.getLogger("cfgdiff")
GRID_MOST = 1024  # pictures in a grid: the first ones
GIF_MOST = 64
SUFFIXES = (".png", ".gif", ".npz", ".tar")
Note = Callable[[int], dict[str, Any]]


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

    def file(self, index: int) -> Path:
        """Where picture `index` is."""
        return self.path / f"{index:0{self._digits}d}.{self._kind}"

    def missing(self) -> np.ndarray:
        """The indices of pictures that are not there yet. Raises `BadInput` where those that are were made otherwise."""
        there = np.array([self.file(i).is_file() for i in range(self._n)])
        for i in np.flatnonzero(there)[[0, -1]] if there.any() else []:
            found, wanted = read_note(self.file(int(i))), json.loads(json.dumps(self._note(int(i))))  # as it is read back
            differing = [f"{key} {found.get(key)} (now {value})" for key, value in wanted.items() if found.get(key) != value]
            if differing:
                raise BadInput(f"--resume: {self.file(int(i))} was made with {', '.join(differing)}; give the same flags or another --out")
        return np.flatnonzero(~there)

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        _make(self.path)
        for i, picture in zip(indices.tolist(), pictures, strict=True):
            write_whole(self.file(i), encoded(picture, self._kind, self._note(i)))

    def finish(self) -> None:
        """Read the first pictures back into grid.png, and say what else is there, of a longer run before."""
        pictures = []
        for i in range(min(self._n, GRID_MOST)):
            with Image.open(self.file(i)) as image:
                pictures.append(np.atleast_3d(np.asarray(image)))
        save_png(self.path / "grid.png", grid(np.stack(pictures), columns=self._columns))
        own = {self.file(i).name for i in range(self._n)}
        if others := sorted(p.name for p in self.path.glob(f"*.{self._kind}") if p.stem.isdecimal() and p.name not in own):
            log.warning("%s: %d pictures of an earlier run are there, too, from %s on", self.path, len(others), others[0])


class Grid:
    """The first pictures as one PNG."""

    def __init__(self, path: Path, columns: int | None) -> None:
        self.path, self._kept, self._room, self._columns = path, list[np.ndarray](), GRID_MOST, columns

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        self._kept.append(pictures[: self._room].copy())
        self._room -= len(self._kept[-1])

    def finish(self) -> None:
        """Write the grid."""
        _make(self.path.parent)
        save_png(self.path, grid(np.concatenate(self._kept), columns=self._columns))


class Gif(Grid):
    """A moving grid of the first pictures: how they come out of the noise, or the interpolations of `columns` pictures each."""

    def __init__(self, path: Path, columns: int | None) -> None:
        super().__init__(path, columns)
        self._frames = list[np.ndarray]()

    def see(self, first: int, x0: np.ndarray) -> None:
        """The clean pictures (B, C, H, W) after an evaluation; of the first batch only, and for no interpolation."""
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


class Npz:
    """Arrays `pictures` (N, H, W, C) uint8, `labels` (N,) int64 and `note` (that of picture 0, as JSON)."""

    def __init__(self, file: IO[bytes], labels: np.ndarray, note: Note) -> None:
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._labels, self._note = labels, note
        self._pictures: IO[bytes] | None = None

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        if self._pictures is None:
            self._pictures = self._archive.open("pictures.npy", "w", force_zip64=True)
            shape = (len(self._labels), *pictures.shape[1:])
            np.lib.format.write_array_header_1_0(self._pictures, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._pictures.write(np.ascontiguousarray(pictures).tobytes())

    def finish(self) -> None:
        """Write what stands behind the pictures."""
        assert self._pictures is not None
        self._pictures.close()
        with self._archive.open("labels.npy", "w") as entry:
            np.lib.format.write_array(entry, self._labels)
        with self._archive.open("note.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(self._note(0))))

    def close(self) -> None:
        """Close what is open, after an error, too."""
        if self._pictures is not None:
            self._pictures.close()
        self._archive.close()


class Tar:
    """A WebDataset: for each picture its file, `.cls` with the number of its class and `.json` with its note."""

    def __init__(self, file: IO[bytes], labels: np.ndarray, note: Note, kind: str) -> None:
        self._archive = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by finish
        self._labels, self._note, self._kind = labels, note, kind
        self._digits = max(6, len(str(len(labels) - 1)))

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        for i, picture in zip(indices.tolist(), pictures, strict=True):
            note = self._note(i)
            parts = {
                self._kind: encoded(picture, self._kind, note),
                "cls": str(self._labels[i]).encode(),
                "json": json.dumps(note).encode(),
            }
            for suffix, data in parts.items():
                entry = tarfile.TarInfo(f"{i:0{self._digits}d}.{suffix}")  # its time stays 0: the same run gives the same bytes
                entry.size = len(data)
                self._archive.addfile(entry, io.BytesIO(data))
        self._archive.members.clear()  # type: ignore[attr-defined]  # else they are all kept in memory

    def finish(self) -> None:
        """All is written as it comes."""

    def close(self) -> None:
        """Write the end of the archive."""
        self._archive.close()


@contextmanager
def output(path: Path, labels: np.ndarray, note: Note, kind: str = "png", columns: int | None = None) -> Iterator[Output]:
    """Where `path` says by its name: a .png, .gif, .npz or .tar, else a folder; finished when the block ends well.

    Args:
        labels: of all pictures of the run, (N,) int64.
        note: what picture i says of itself.
        kind: of the pictures in a folder or .tar, png or webp (lossless).
        columns: of a grid, whose rows are then interpolations.

    Raises:
        Failure: the place will not do.
    """
    check_place(path)
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".tar"):
        plain: Output = _plain(path, suffix, columns) or Folder(path, labels, note, kind, columns)
        yield plain
        plain.finish()
        return
    _make(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file, closing(Npz(file, labels, note) if suffix == ".npz" else Tar(file, labels, note, kind)) as whole:
            yield whole
            whole.finish()
        os.replace(partial, path)
    except OSError as error:
        raise Failure(f"--out: cannot write {path} ({error.strerror or error}); choose another place or make room") from None
    finally:
        partial.unlink(missing_ok=True)


def _plain(path: Path, suffix: str, columns: int | None) -> Output | None:
    return Grid(path, columns) if suffix == ".png" else Gif(path, columns) if suffix == ".gif" else None


def check_place(path: Path) -> None:
    """Raises `Failure` where `path` cannot be written, before any work."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and path.exists() and not path.is_dir():
        raise Failure(f"--out {path}: is a file; expected a folder, or a name ending in {', '.join(SUFFIXES)}")
    if suffix in SUFFIXES and path.is_dir():
        raise Failure(f"--out {path}: is a folder; expected a name for a {suffix} file")
    folder = path.parent if suffix in SUFFIXES else path
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Failure(f"--out {path}: cannot write in {existing}; choose another place")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out: cannot make folder {folder} ({error.strerror}); choose another place") from None
