"""Folders that are written whole or not at all, whenever the process is killed. It knows nothing of what is in them.

Beside a folder NAME may lie `.NAME.partial`, half-written or half-removed, and `.NAME.old`, always whole: what NAME was, between the
moment it is moved out of the way and the moment the new folder has its name.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target`, or becomes it, when the block ends well. Else `target` stays what it was.

    After a kill in the middle `restore_folder`, or the next `replace_folder`, finds `target` again, old or new. A link stays a link.

    Raises:
        OSError: as the file system says it.
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
    """Give `target` back its name where a kill came between the two renames of `replace_folder`; else do nothing.

    Raises:
        OSError: as the file system says it.
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
    """Remove a folder so that a kill leaves it whole, or under the name of a half-written one."""
    partial, _ = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    target.rename(partial)
    shutil.rmtree(partial)


def remove_partial(parent: Path) -> None:
    """Remove what kills left half-written or half-removed in `parent`."""
    for partial in parent.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")


def _clean(target: Path) -> None:
    """Leave `target` alone beside itself: the old folder goes where there is a new one, and comes back where there is none."""
    restore_folder(target)
    partial, old = _beside(target)
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        old.rename(partial)  # first, so that what is called old is always whole
        shutil.rmtree(partial, ignore_errors=True)
