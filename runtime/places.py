"""Where a set of shards lies: a local folder, or a URL that fsspec opens. It knows no pictures.

What is written is whole or absent, and processes that write the same name at once do not disturb each other: each
writes a file or folder of its own, and the later one takes the name.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from .errors import Failure
from .files import TOKEN, cannot_write, lock, write_whole


class Place(Protocol):
    """A set's folder. Names are of the files and folders right in it; errors are `Failure`, naming `at(name)`."""

    def at(self, name: str) -> str:
        """The full name, for errors."""
        ...

    def names(self) -> list[str]:
        """Of all that is there; nothing where the place does not exist yet."""
        ...

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of files, by name; one that is not there is left out."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, or of all files in a folder; None where it is not there."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """The file or folder on this machine, while the block lasts; not to be changed."""
        ...

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Where to write a new file or folder on this machine, which becomes `name` when the block ends well."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        ...


def open_place(dest: str | os.PathLike[str]) -> Place:
    """A folder, or with a protocol, as in s3://bucket/set, a URL. Raises `Failure` where a package is missing."""
    text = os.fspath(dest)
    if "://" in text:
        from .places_url import UrlPlace

        return UrlPlace(text)
    return LocalPlace(Path(text))


class LocalPlace:
    """See `Place`. It is made by the first write."""

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
            raise Failure(f"{self.path}: cannot be read ({error.strerror}); expected a folder with shards") from None

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
        """See `Place`. What a killed process was writing under `name` is removed first."""
        target = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned(name)
            workshop, held = self._workshop(name)
            with held:
                try:
                    yield workshop / name
                    _synced(workshop / name)
                    if target.is_dir() or (target.exists() and (workshop / name).is_dir()):
                        os.replace(target, workshop / "old")  # a folder takes no other's place
                    os.replace(workshop / name, target)
                finally:
                    shutil.rmtree(workshop, ignore_errors=True)
        except OSError as error:
            raise cannot_write(target, error) from None

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        write_whole(self.path / name, data)

    def _workshop(self, name: str) -> tuple[Path, IO[bytes]]:
        """A new hidden folder, on the file system of the target, and the file in it that is locked while it is used."""
        while True:
            folder = self.path / f".{name}.{secrets.token_hex(TOKEN // 2)}.partial"
            folder.mkdir()
            with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
                if (file := lock(folder / "lock", "x+b")) is not None and os.fstat(file.fileno()).st_nlink:
                    return folder, file

    def _remove_abandoned(self, name: str) -> None:
        for folder in self.path.glob(f".{name}.{'[0-9a-f]' * TOKEN}.partial"):
            with suppress(OSError):  # another process has just removed it
                if (file := lock(folder / "lock", "r+b")) is not None:
                    with file:
                        shutil.rmtree(folder, ignore_errors=True)


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
    if path.is_dir():
        lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files_in(path))
        return hashlib.sha256(lines.encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _synced(path: Path) -> None:
    """Wait until it is on the disk."""
    for file in files_in(path):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
