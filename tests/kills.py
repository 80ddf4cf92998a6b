"""SIGKILL before every file operation of a piece of work, one after the other: for scripts that tests start as processes of their own.

The work runs in forked copies, so the process must not have threads: no engine is to be open in it.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def forked(*works: Callable[[], object], at: int = 0) -> bool:
    """Run `works` in a copy of this process, the last one killed before its file operation `at` (0: not at all); whether it ended."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def before(event: str, args: tuple) -> None:
            nonlocal count
            if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITING and args[0] != os.devnull):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            for work in works[:-1]:
                work()
            sys.addaudithook(before)
            works[-1]()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit("the work failed")
    return True


def every_kill(prepare: Callable[[], object], work: Callable[[], object], check: Callable[[], object], after: Callable[[], object]) -> int:
    """For every file operation of `work`: `prepare`, `work` killed before it, `check`, `work` again to its end, `after`.

    Returns:
        how many kills there were.
    """
    at = 1
    while not forked(prepare, work, at=at):
        forked(check, work, after)
        at += 1
    return at - 1
