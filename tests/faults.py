"""SIGKILL before the k-th operation on a file, for every k: an injected fault, not luck.

It forks, so it belongs into a process without threads: the tests run it in one, as tests/cli/test_kills.py does.
"""

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# os.replace is a rename
CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}


class _Torn:
    """A file of which the write that is to be the last one arrives by half."""

    def __init__(self, file: Any, before: Callable[[str], None]) -> None:
        self._file, self._before = file, before

    def write(self, data: Any) -> int:
        half = len(memoryview(data)) // 2
        self._file.write(memoryview(data)[:half])
        self._file.flush()
        self._before("write")
        return half + self._file.write(memoryview(data)[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def kill_before(k: int, below: Path) -> None:
    """From now on, this process ends by SIGKILL before its k-th operation on files in the folder `below`, from 1 on.

    Counted are opening for writing, writing (half has arrived then), fsync, renaming, removing, and making folders and
    links. It cannot be
    taken back: call it in a process of its own, as `outcome` does.
    """
    count, folder = 0, os.fsencode(below)

    def before(what: str) -> None:
        nonlocal count
        count += 1
        if count == k:
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(path: Any) -> bool:
        try:
            return os.fsencode(os.path.abspath(path)).startswith(folder)
        except TypeError:  # a descriptor
            return False

    def audit(event: str, args: tuple) -> None:
        if (event == "open" and args[2] & WRITING and inside(args[0])) or (event in CHANGING and inside(args[0])):
            before(event)

    opened, synced = io.open, os.fsync

    def open_torn(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        found = opened(file, mode, *args, **more)
        return _Torn(found, before) if inside(file) and "b" in mode and set(mode) & set("wxa+") else found

    def sync(descriptor: int) -> None:
        before("fsync")
        synced(descriptor)

    io.open = builtins.open = open_torn  # type: ignore[assignment] # pathlib has the first
    os.fsync = sync  # type: ignore[assignment]
    sys.addaudithook(audit)


def outcome(work: Callable[[], object], k: int | None = None, below: Path = Path("/")) -> bool:
    """Do `work` in a forked process, killed before its k-th operation on files `below` (if k); whether it ended."""
    child = os.fork()
    if child == 0:
        try:
            if k is not None:
                kill_before(k, below)
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def every_kill(
    start: Callable[[], object], work: Callable[[], object], below: Path, check: Callable[[int], object], every: int = 1
) -> int:
    """For k = 1, 1 + `every`, ...: `start`, `work` killed before its k-th operation on files `below`, `check`; until it
    ends.

    Returns:
        how many kills there were.
    """
    k = 1
    while True:
        start()
        if outcome(work, k, below):
            return k // every
        check(k)
        k += every
