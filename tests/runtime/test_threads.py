"""Rows shared out among threads, and cores counted."""

import os
from pathlib import Path

import pytest

from cfgdiff.runtime import threads
from cfgdiff.runtime.threads import LEAST, MOST, cores, rounds, shares


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 33, 64, 100, 256])
def test_every_row_goes_to_one_thread_in_parts_of_a_good_size(rows: int, count: int) -> None:
    parts = shares(10, 10 + rows, count)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(10, 10 + rows))
    assert shares(3, 3, count) == []
    sizes = [part.stop - part.start for part in parts]
    if rows < 2 * LEAST:
        assert sizes == [rows]
    else:
        assert set(sizes[:-1]) <= {sizes[0]} <= {rows, MOST, MOST // 2, LEAST} and sizes[-1] <= sizes[0] <= MOST
        assert len(parts) >= min(count, rows // LEAST)  # no thread has nothing to do
        assert sizes[0] == MOST or rows < MOST * count or len(parts) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 6, 16])
def test_rounds_give_every_thread_as_many_rows(count: int) -> None:
    assert rounds(0, count) == []
    for rows in range(1, 300):
        found, left = rounds(rows, count), rows
        for size, requests in found:
            assert size in (1, 2, 4, 8, 16)
            if left < count:  # one row each, and the threads divide evenly among them
                assert size == 1 and requests == 1 << (left.bit_length() - 1)
            else:
                assert requests % count == 0 or size * count - left <= max(1, size * count // 8)
            left -= size * requests
        assert -count * MOST / 8 <= left <= 0 and len(found) <= 5 + count.bit_length()
        per_thread = sum(size * -(-requests // count) for size, requests in found)
        assert per_thread <= max(1.15 * rows / count, rows / count + count.bit_length())


def test_rounds_of_two_threads() -> None:
    assert rounds(1, 2) == [(1, 1)] and rounds(3, 2) == [(2, 2)] and rounds(5, 2) == [(2, 2), (1, 1)]
    assert rounds(64, 2) == [(16, 4)] and rounds(61, 2) == [(16, 2), (16, 2)] and rounds(17, 2) == [(8, 2), (1, 1)]
    assert rounds(40, 2) == [(16, 2), (4, 2)] and rounds(11, 2) == [(4, 2), (2, 2)]


def test_hyperthreads_are_one_core_and_a_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    monkeypatch.setattr(threads, "SYSTEM", tmp_path)
    assert cores() == 6  # nothing is known of them
    for cpu in range(6):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    assert cores() == 3
    (tmp_path / "fs/cgroup").mkdir(parents=True)
    for quota, expected in (("max 100000", 3), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 3)):
        (tmp_path / "fs/cgroup/cpu.max").write_text(f"{quota}\n")
        assert cores() == expected
    (tmp_path / "fs/cgroup/cpu.max").unlink()
    (tmp_path / "fs/cgroup/cpu").mkdir()
    (tmp_path / "fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("-1", 3), ("150000", 2)):  # version 1
        (tmp_path / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert cores() == expected
