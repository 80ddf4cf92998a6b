"""How the rows of a call are shared out among CPU threads. It knows no engine."""

import os
from pathlib import Path

LEAST, MOST = 4, 16  # rows that a thread takes at a time: fewer keep a core from its speed, the activations of more fall out of its cache
SYSTEM = Path("/sys")


def cores() -> int:
    """Physical cores that this process may use, by its affinity and its container's quota; the hyperthreads of a core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = len({_read(f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in os.sched_getaffinity(0)})
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup versions 2 and 1
        quota, _, period = " ".join(_read(f"fs/cgroup/{file}") for file in files).partition(" ")
        if quota.isdigit() and period.isdigit():  # else there is none
            return max(1, min(allowed, -(-int(quota) // int(period))))
    return allowed


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
