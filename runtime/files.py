"""Files and folders that are whole or absent, even after a kill: written beside the target, then renamed over it.

A partial file stays locked while its process lives, so one without a lock was left by a process that was killed; the
next process that writes the same target removes it, or continues it. Two processes that write one target do not share a
partial file: the later rename wins.

Beside a folder NAME may lie `.NAME.partial`, half-written or half-removed, and `.NAME.old`, always whole: what NAME
was, between the moment it is moved out of the way and the moment the new folder has its name.
"""

import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import Failure

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open can be neither removed nor renamed
    fcntl = None  # type: ignore[assignment]

TOKEN = 8  # hexadecimal digits that make the name of a partial file unique


@contextmanager
def partial_file(target: Path, sync: bool = True, resume: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the place of `target` when the block ends well, and is removed when it does not.

    Args:
        sync: wait until it is on the disk before it is renamed, so that it is whole after a power failure, too.
        resume: start from the longest file that interrupted calls left; and leave this file when the block fails.

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
        one_of_many: not synced, so a power failure can lose it; and the caller calls `remove_abandoned` for all.
    """
    try:
        if not one_of_many:
            remove_abandoned(path)
        with partial_file(path, sync=not one_of_many) as file:
            file.write(data)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_json(path: Path, tree: Any) -> None:
    """`write_whole` of `json_bytes`."""
    write_whole(path, json_bytes(tree))


def json_bytes(tree: Any) -> bytes:
    """JSON, an entry a line."""
    return (json.dumps(tree, indent=1) + "\n").encode()


def cannot_write(path: Path, error: OSError) -> Failure:
    """The error of a file or folder that cannot be written."""
    return Failure(f"{path}: cannot be written ({error.strerror or error}); make room or choose another place")


def partial_files(target: Path) -> list[Path]:
    """The partial files of `target`, the longest first. Its name may contain * for several targets."""
    name = "*".join(glob.escape(part) for part in target.name.split("*"))
    sizes = []
    for path in target.parent.glob(f".{name}.{'[0-9a-f]' * TOKEN}.partial"):
        with suppress(OSError):  # another process has just removed it
            sizes.append((path.stat().st_size, path))
    return [path for _, path in sorted(sizes, reverse=True)]


def remove_abandoned(target: Path) -> None:
    """Remove the partial files of processes that were killed while they wrote `target`; see `partial_files`."""
    for path in partial_files(target):
        with suppress(OSError):  # another process has just removed it, or it belongs to another user
            if fcntl is None:
                path.unlink()
            elif file := lock(path, "r+b"):
                with file:
                    path.unlink()


def _new(target: Path) -> IO[bytes]:
    while True:
        file = lock(target.with_name(f".{target.name}.{secrets.token_hex(TOKEN // 2)}.partial"), "x+b")
        if file is not None and (fcntl is None or os.fstat(file.fileno()).st_nlink):
            return file  # and no other process took it for abandoned before it was locked


def _longest_abandoned(target: Path) -> IO[bytes] | None:
    for path in partial_files(target):
        with suppress(OSError):
            if file := lock(path, "r+b"):
                return file
    return None


def lock(path: Path, mode: str) -> IO[bytes] | None:
    """The file, locked until it is closed; None where another process has locked it."""
    file = path.open(mode)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks: an abandoned file cannot be told from one that is being written
        if mode != "x+b":
            file.close()
            return None
    return file


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target`, or becomes it, when the block ends well; else nothing changes.

    After a kill, `restore_folder` or the next `replace_folder` finds `target` again, old or new. A link stays a link.

    Raises:
        OSError: as the file system says it.
    """
    target = Path(os.path.realpath(target))
    partial, old = _beside(target)
    _clean(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        _clean(target)


def restore_folder(target: Path) -> None:
    """Give `target` back its name where a kill came between the two renames of `replace_folder`; else do nothing.

    Raises:
        OSError: as the file system says it.
    """
    target = Path(os.path.realpath(target))
    if not target.exists() and (old := _beside(target)[1]).exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(target)


def restore_folders(parent: Path) -> None:
    """`restore_folder` for everything in `parent`. Raises OSError."""
    for old in parent.glob(".*.old"):
        restore_folder(parent / old.name.removeprefix(".").removesuffix(".old"))


def remove_folder(target: Path) -> None:
    """Remove a folder so that a kill leaves it whole, or under the name of a half-written one."""
    partial, _ = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    target.rename(partial)
    shutil.rmtree(partial)


def remove_partial(parent: Path) -> None:
    """Remove the half-written and half-removed folders that kills left in `parent`."""
    for partial in parent.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")


def _clean(target: Path) -> None:
    """Remove what is beside `target`; where it is missing, give the old folder its name back."""
    restore_folder(target)
    partial, old = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        old.rename(partial)  # first, so that what is called old is always whole
        shutil.rmtree(partial, ignore_errors=True)
