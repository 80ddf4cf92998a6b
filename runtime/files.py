"""Files that are whole or absent: written under a name of their own beside the target, then renamed over it. It knows no pictures.

A partial file stays locked while its process lives, so one without a lock was left by a process that was killed; whoever writes the same
target next removes it, or continues it. Two processes that write one target do not share a partial file: the later rename wins, whole.
"""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import Failure

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open can be neither removed nor renamed
    fcntl = None  # type: ignore[assignment]

TOKEN = 8  # hexadecimal digits that make the name of a partial file its own


@contextmanager
def partial_file(target: Path, sync: bool = True, resume: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the place of `target` when the block ends well, and is removed when it does not.

    Args:
        sync: wait until it is on the disk before it is renamed, so that it is whole after a power failure, too.
        resume: give the longest of the files that interrupted calls left, where there is one, at its start; and leave this one when the
            block does not end well.

    Raises:
        OSError: it cannot be written.
    """
    file = (_longest_abandoned(target) if resume else None) or _new(target)
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if fcntl is None:
                file.close()
            os.replace(file.name, target)  # before the lock goes with closing
    except BaseException:
        partial = Path(file.name)
        if not (resume and partial.is_file() and partial.stat().st_size):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, one_of_many: bool = False) -> None:
    """Write a file, whole or not at all. Raises `Failure` where that fails.

    Args:
        one_of_many: of a folder, for which the caller calls `remove_abandoned` once, and which can lose the last ones in a power failure.
    """
    try:
        if not one_of_many:
            remove_abandoned(path)
        with partial_file(path, sync=not one_of_many) as file:
            file.write(data)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> Failure:
    """The line for it."""
    return Failure(f"--out: cannot write {path} ({error.strerror or error}); choose another place or make room")


def partial_files(target: Path) -> list[Path]:
    """The files that are, or were, to become `target`, the longest first. Its name may have * in it for several targets."""
    name = "*".join(glob.escape(part) for part in target.name.split("*"))
    found = []
    for path in target.parent.glob(f".{name}.{'[0-9a-f]' * TOKEN}.partial"):
        with suppress(OSError):  # it has gone meanwhile
            found.append((path.stat().st_size, path))
    return [path for _, path in sorted(found, reverse=True)]


def remove_abandoned(target: Path) -> None:
    """Remove what processes left that were killed while they wrote `target`; see `partial_files`."""
    for path in partial_files(target):
        with suppress(OSError):  # it has gone meanwhile, or belongs to another user
            if fcntl is None:
                path.unlink()
            elif file := _locked(path, "r+b"):
                with file:
                    path.unlink()


def _new(target: Path) -> IO[bytes]:
    while True:
        file = _locked(target.with_name(f".{target.name}.{secrets.token_hex(TOKEN // 2)}.partial"), "x+b")
        if file is not None and (fcntl is None or os.fstat(file.fileno()).st_nlink):
            return file  # and no other process took it for abandoned before it was locked


def _longest_abandoned(target: Path) -> IO[bytes] | None:
    for path in partial_files(target):
        with suppress(OSError):
            if file := _locked(path, "r+b"):
                return file
    return None


def _locked(path: Path, mode: str) -> IO[bytes] | None:
    """The file, locked until it is closed; None where another process has locked it."""
    file = path.open(mode)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks: what is there cannot be told from what is being written
        if mode != "x+b":
            file.close()
            return None
    return file
