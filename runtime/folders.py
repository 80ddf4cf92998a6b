"""Folders that are replaced completely or not at all, whenever the process is killed. It knows no contents.

Beside a folder NAME there may be `.NAME.partial`, half-written or half-removed, and `.NAME.old`, always complete: the
previous NAME, from the moment it is moved out of the way until the new folder has its name.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder that replaces `target`, or becomes it, when the block ends without an error. Else `target` stays.

    After a kill, `restore_folder` or the next `replace_folder` restores `target`, old or new. A link stays a link.

    Raises:
        OSError: from the file system.
    """
    target = Path(os.path.realpath(target))
    partial, old = _beside(target)
    _clean(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        _clean(target)


def restore_folder(target: Path) -> None:
    """Give `target` its name back where a kill came between the two renames of `replace_folder`.

    Raises:
        OSError: from the file system.
    """
    target = Path(os.path.realpath(target))
    if not target.exists() and (old := _beside(target)[1]).exists():
        with suppress(FileNotFoundError):  # another process was faster
            old.rename(target)


def restore_folders(parent: Path) -> None:
    """`restore_folder` for all in `parent`. Raises OSError."""
    for old in parent.glob(".*.old"):
        restore_folder(parent / old.name.removeprefix(".").removesuffix(".old"))


def remove_folder(target: Path) -> None:
    """Remove a folder; a kill leaves it complete, or under the name of a half-written one."""
    partial, _ = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    target.rename(partial)
    shutil.rmtree(partial)


def remove_partial(parent: Path) -> None:
    """Remove the half-written and half-removed folders in `parent`, left by kills."""
    for partial in parent.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")


def _clean(target: Path) -> None:
    """Remove all but `target`: an old folder is removed where there is a new one, and else gets its name back."""
    restore_folder(target)
    partial, old = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        old.rename(partial)  # first, so that an old folder is always complete
        shutil.rmtree(partial, ignore_errors=True)
