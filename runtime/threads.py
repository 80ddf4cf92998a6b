"""Divides the rows of a call among CPU threads. It knows no engine."""

import os
from pathlib import Path

# Rows that a thread takes at a time: fewer keep a core from its speed, more have activations that exceed its cache.
LEAST, MOST = 4, 16
SYSTEM = Path("/sys")


def cores() -> int:
    """Physical cores that this process may use, by its affinity and its container's quota, without hyperthreads."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = "devices/system/cpu/cpu{}/topology/thread_siblings_list"
    allowed = len({_read(siblings.format(cpu)) or str(cpu) for cpu in os.sched_getaffinity(0)})
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


def shares(start: int, stop: int, threads: int) -> list[slice]:
    """Parts of the rows start .. stop - 1, for one thread each; one part where all threads together are faster.

    Threads that compute different rows never wait for each other, which they do within every operator of one part. All
    parts but the last have `MOST` rows, or half or a quarter of that where some threads would have none.
    """
    rows, size = stop - start, MOST
    if rows < 2 * LEAST:
        return [slice(start, stop)] if rows else []
    while size > LEAST and rows < size * threads:
        size //= 2
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def rounds(rows: int, threads: int) -> list[tuple[int, int]]:
    """Sizes of requests, and how many of each are computed at once: as many rows for every thread, where there are.

    Sizes are powers of 2 up to `MOST`, as each is a shape to compile, and the last request of a round may lack rows:
    one, or an eighth of its round. Requests that are fewer than the threads are of one row, for several threads each.
    """
    found = list[tuple[int, int]]()
    while rows > 0:
        size = min(MOST, 1 << (max(1, rows // threads).bit_length() - 1))
        missing = 2 * size * threads - rows
        if rows < threads:
            count = 1 << (rows.bit_length() - 1)
        elif size < MOST and (missing <= 1 or 4 * missing <= size * threads):
            size, count = 2 * size, -(-rows // (2 * size))
        else:
            count = threads * (rows // (size * threads))
        found.append((size, count))
        rows -= size * count
    return found
