"""How the rows of a call are shared out among CPU threads. It knows no engine."""

import os
from pathlib import Path

LEAST, MOST = 4, 16  # rows that a thread takes at a time: fewer keep a core from its speed, the activations of more fall out of its cache
SYSTEM = Path("/sys")


def cores() -> int:
    """Processor cores that this process may use, at least 1: two hyperthreads are one core, and a container's quota counts."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = len({_read(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in os.sched_getaffinity(0)})
    quota, _, period = _read("fs/cgroup/cpu.max").partition(" ")  # microseconds of CPU time in a period, or "max"
    return max(1, min(allowed, -(-int(quota) // int(period)))) if quota.isdigit() else allowed


def _read(path: str) -> str:
    try:
        return (SYSTEM / path).read_text().strip()
    except OSError:
        return ""


def shares(rows: int, threads: int) -> list[slice]:
    """Parts of a call for threads that take one at a time each, as equal as they go; one part where all threads together are faster.

    Threads that compute different rows never wait for each other, which they do within every operator of one part.
    """
    if rows < 2 * LEAST:
        return [slice(0, rows)]
    turns = -(-rows // (threads * MOST))
    size = max(LEAST, -(-rows // (threads * turns)))
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
