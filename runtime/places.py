"""Where a set of shards lies: a local folder, or a URL that fsspec opens. It knows no pictures.

What is written is whole or absent, and processes that write the same name at once do not disturb each other: each
writes a file or folder of its own, and the later one takes the name.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from .errors import Failure
from .files import TOKEN, cannot_write, lock, remove_abandoned, write_whole


class Place(Protocol):
    """The folder of a set. Names are of files and folders right in it. Errors are `Failure`, naming `at(name)`."""

    def at(self, name: str) -> str:
        """The full name, for errors."""
        ...

    def names(self) -> list[str]:
        """Of all that is there; none where the place does not exist yet."""
        ...

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of files, by name; one that is not there is left out."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or of all files in a folder; None where it is not there. A URL knows it as of `names`."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """The file or folder on this machine while the block lasts, to be read only."""
        ...

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Where to write a file or folder on this machine, which becomes `name` when the block ends well."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        ...

    def tidy(self, name: str) -> None:
        """Remove what killed processes left half-written of `name`, which may contain * for several names."""
        ...


def open_place(dest: str | os.PathLike[str]) -> Place:
    """A folder, or with a protocol, as in s3://bucket/set, a URL. Raises `Failure` where its package is missing."""
    text = os.fspath(dest)
    if not is_url(text):
        return LocalPlace(Path(text))
    from .places_url import UrlPlace

    return UrlPlace(text)


def is_url(dest: object) -> bool:
    """Whether it has a protocol, as s3://bucket/set."""
    return "://" in str(dest)


class LocalPlace:
    """See `Place`. The first write makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def at(self, name: str) -> str:
        """See `Place`."""
        return str(self.path / name)

    def names(self) -> list[str]:
        """See `Place`."""
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Failure(f"{self.path}: cannot be read ({error.strerror}); expected a folder") from None

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """See `Place`."""
        contents = {}
        for name in names:
            try:
                contents[name] = (self.path / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Failure(f"{self.at(name)}: cannot be read ({error.strerror}); expected a file") from None
        return contents

    def size(self, name: str) -> int | None:
        """See `Place`."""
        return size_of(self.path / name)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Place`."""
        if not (self.path / name).exists():
            raise Failure(f"{self.at(name)}: is missing; make its shard anew")
        yield self.path / name

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """See `Place`."""
        target = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            workshop, held = self._workshop(name)
            try:
                with held:
                    yield workshop / name
                    _sync(workshop / name)
                    _take_name(workshop / name, target, workshop / "old")
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
        except OSError as error:
            raise cannot_write(target, error) from None

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        write_whole(self.path / name, data)

    def tidy(self, name: str) -> None:
        """See `Place`."""
        for folder in self.path.glob(f".{name}.{'[0-9a-f]' * TOKEN}.partial/"):
            with suppress(OSError):  # another process has just removed it, or it belongs to another user
                if (file := lock(folder / "lock", "r+b")) is not None:
                    with file:
                        shutil.rmtree(folder, ignore_errors=True)
        remove_abandoned(self.path / name)

    def _workshop(self, name: str) -> tuple[Path, IO[bytes]]:
        """A new hidden folder on the file system of the target, and the file in it that is locked while it is used."""
        while True:
            folder = self.path / f".{name}.{secrets.token_hex(TOKEN // 2)}.partial"
            folder.mkdir()
            with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
                if (file := lock(folder / "lock", "x+b")) is not None:
                    os.stat(folder / "lock")
                    return folder, file


def _take_name(new: Path, target: Path, old: Path) -> None:
    """Give `new` the name of `target`, whatever has it. A folder must be moved away, so for a moment there is none."""
    while True:
        with suppress(FileNotFoundError):  # nothing has the name, or another process has just moved it away
            if new.is_dir() or target.is_dir():
                target.rename(old)
        try:
            os.replace(new, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster: once more
                raise
            shutil.rmtree(old, ignore_errors=True)


def files_in(path: Path) -> list[Path]:
    """A file, or the files of a folder, sorted by their names."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None where it is not there."""
    try:
        return sum(file.stat().st_size for file in files_in(path))
    except FileNotFoundError:
        return None


def sha256_of(path: Path) -> str:
    """The sha256 of a file; of a folder, that over the lines "sha256  name" of its files, as sha256sum writes them."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in files_in(path):
            digest.update(f"{sha256_of(file)}  {file.name}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file is on the disk. Those of a folder are too many: the next call finds by its sha256 what a power
    failure took from it."""
    if not path.is_dir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
