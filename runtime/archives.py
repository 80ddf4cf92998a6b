"""Many pictures in one file, written as they come, in constant memory: an .npz of arrays, or a .tar that can resume."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from .files import partial_files
from .images import check_note, encoded

Note = Callable[[int], dict[str, Any]]


class Npz:
    """Arrays `pictures` (N, H, W, C) uint8, `labels` (N,) int64 and `note` (that of picture 0, as JSON)."""

    def __init__(self, file: IO[bytes], labels: np.ndarray, note: Note) -> None:
        self._file = _Droppable(file)
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED)  # type: ignore[call-overload]
        self._labels, self._note = labels, note
        self._pictures: IO[bytes] | None = None

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        if self._pictures is None:
            self._pictures = self._archive.open("pictures.npy", "w", force_zip64=True)
            shape = (len(self._labels), *pictures.shape[1:])
            np.lib.format.write_array_header_1_0(
                self._pictures, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
        self._pictures.write(np.ascontiguousarray(pictures).tobytes())

    def finish(self) -> None:
        """Write labels and note, and close."""
        assert self._pictures is not None
        self._pictures.close()
        with self._archive.open("labels.npy", "w") as entry:
            np.lib.format.write_array(entry, self._labels)
        with self._archive.open("note.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(self._note(0))))
        self._archive.close()

    def drop(self) -> None:
        """After an error: close without writing, or zipfile would try again, and complain, as it is collected."""
        self._file.dropped = True
        if self._pictures is not None:
            self._pictures.close()
        self._archive.close()


class _Droppable:
    """A file that ignores writes once it is dropped."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.dropped = file, False

    def write(self, data: Any) -> int:
        return len(data) if self.dropped else self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0 if self.dropped else self._file.seek(offset, whence)

    def tell(self) -> int:
        return 0 if self.dropped else self._file.tell()

    def flush(self) -> None:
        if not self.dropped:
            self._file.flush()


class Tar:
    """A WebDataset: for each picture its file, `.cls` with the number of its class and `.json` with its note.

    Args:
        file: readable and writable, empty or as an interrupted run left it.
        earlier: a .tar that may hold more of the run's pictures. Both stay unchanged until a picture is added.

    Raises:
        BadInput: pictures that are there were made differently.
    """

    def __init__(self, file: IO[bytes], labels: np.ndarray, note: Note, kind: str, earlier: Path | None = None) -> None:
        self._file, self._labels, self._note, self._kind, self._earlier = file, labels, note, kind, None
        self._archive: tarfile.TarFile | None = None
        self._ends = self._ends_in(file)
        if earlier is not None and earlier.is_file():
            with earlier.open("rb") as other:
                ends = self._ends_in(other)
            if len(ends) > len(self._ends):
                self._ends, self._earlier = ends, earlier

    def missing(self) -> np.ndarray:
        """The indices of missing pictures."""
        return np.arange(len(self._ends), len(self._labels))

    def add(self, indices: np.ndarray, pictures: np.ndarray) -> None:
        """See `Output.add`."""
        archive = self._archive or self._continue(int(indices[0]))
        for i, picture in zip(indices.tolist(), pictures, strict=True):
            note = self._note(i)
            data = encoded(picture, self._kind, note)
            add_picture(archive, self._stem(i), self._kind, data, int(self._labels[i]), note)

    def finish(self) -> None:
        """Write the end of the archive."""
        (self._archive or self._continue(len(self._labels))).close()

    def drop(self) -> None:
        """After an error: leave what was written, for a call that resumes."""

    def _stem(self, i: int) -> str:
        return f"{i:0{max(6, len(str(len(self._labels) - 1)))}d}"

    def _names(self, i: int) -> list[str]:
        return [f"{self._stem(i)}.{suffix}" for suffix in (self._kind, "cls", "json")]

    def _ends_in(self, file: IO[bytes]) -> list[int]:
        """Where each picture of this run ends in `file`."""
        ends, notes = list[int](), list[bytes]()
        for (names, end, note), i in zip(_pictures_in(file), range(len(self._labels)), strict=False):
            if names != self._names(i):
                break
            ends.append(end)
            notes[1:] = [note]
        for i, note in zip((0, len(ends) - 1), notes, strict=False):
            check_note(f"{file.name}: {self._names(i)[0]}", json.loads(note), self._note(i))
        return ends

    def _continue(self, i: int) -> tarfile.TarFile:
        """What is written next is picture i."""
        if self._earlier is not None:
            self._file.seek(0)
            with self._earlier.open("rb") as earlier:
                shutil.copyfileobj(earlier, self._file)
        self._file.seek(self._ends[i - 1] if i else 0)
        self._file.truncate()
        self._archive = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - see finish
        return self._archive


def add_picture(archive: tarfile.TarFile, stem: str, kind: str, data: bytes, label: int, note: dict[str, Any]) -> None:
    """Add a picture to a WebDataset: its file, `.cls` with the number of its class and `.json` with its note."""
    for suffix, content in ((kind, data), ("cls", str(label).encode()), ("json", json.dumps(note).encode())):
        entry = tarfile.TarInfo(f"{stem}.{suffix}")  # its time stays 0: the same run gives the same bytes
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    archive.members.clear()  # type: ignore[attr-defined]  # else they are all kept in memory


def first_note(path: Path) -> dict[str, Any] | None:
    """The note of the first picture in a .tar, or in what an interrupted run left of it; None where there is none."""
    for candidate in (path, *partial_files(path)):
        with suppress(FileNotFoundError), candidate.open("rb") as file:
            for _, _, note in _pictures_in(file):
                return dict(json.loads(note))
    return None


def _pictures_in(file: IO[bytes]) -> Iterator[tuple[list[str], int, bytes]]:
    """Of each complete picture at the start of a .tar: the names of its three files, where it ends, and its note."""
    size, members = file.seek(0, io.SEEK_END), list[tarfile.TarInfo]()
    file.seek(0)
    with suppress(tarfile.TarError):  # it ends in the middle, or is empty
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the file is the caller's
        while (member := archive.next()) is not None:
            members.append(member)
            archive.members.clear()  # type: ignore[attr-defined]  # else they are all kept in memory
            if len(members) < 3:
                continue
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            note = archive.extractfile(member)
            if end > size or note is None:
                return
            yield [m.name for m in members], end, note.read()
            members.clear()
