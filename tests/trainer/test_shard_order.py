"""Patterns name shards as WebDataset does; the order of their pictures depends on the seed alone and stays local."""

from pathlib import Path

import numpy as np
import pytest

from cfgdiff.trainer.shard_order import ShardOrder, as_url, find_shards, lies_here

STARTS = np.array([0, 5, 9, 9, 20, 23])  # five shards, one of them empty


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_every_epoch_sees_each_picture_once_a_few_shards_at_a_time(window: int) -> None:
    order = ShardOrder(STARTS, window)
    first, second = order.indices(0, 23, 7), order.indices(23, 23, 7)
    assert sorted(first) == sorted(second) == list(range(23)) and not np.array_equal(first, second)
    assert not np.array_equal(first, order.indices(0, 23, 8))
    owners = np.searchsorted(STARTS, first, "right") - 1
    for k in range(5):
        [where] = np.nonzero(owners == k)
        others = set(owners[where[0] : where[-1] + 1]) if len(where) else set()
        assert len(others) <= window, "pictures of one shard lie among those of its group alone"


def test_the_order_is_the_same_however_it_is_cut() -> None:
    order = ShardOrder(STARTS, 2)
    whole = order.indices(0, 100, 3)
    np.testing.assert_array_equal(np.concatenate([order.indices(i, 7, 3) for i in range(0, 98, 7)]), whole[:98])
    np.testing.assert_array_equal(ShardOrder(STARTS.copy(), 2).indices(41, 50, 3), whole[41:91])


def test_a_window_of_all_shards_mixes_all_pictures() -> None:
    order = ShardOrder(np.arange(0, 10_001, 100), 100)
    after = np.argsort(order.indices(0, 10_000, 0))  # where each picture is seen
    correlation = np.corrcoef(np.arange(10_000), after)[0, 1]
    assert abs(correlation) < 0.04, "four deviations of what chance gives, 1 / 100"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", ["a-00.tar", "a-01.tar", "a-02.tar", "b.tar"]),
        ("a-*.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("a-{01..07}.tar", ["a-01.tar", "a-02.tar"]),
        ("{0..9}-{00..07}.tar", None),
        ("b.tar", ["b.tar"]),
        ("c.tar", None),
    ],
)
def test_a_pattern_names_shards(given: str, names: list[str] | None, tmp_path: Path) -> None:
    for name in ("a-02.tar", "a-00.tar", "a-01.tar", "b.tar", ".c.tar", "notes.txt"):
        (tmp_path / name).touch()
    found = find_shards(tmp_path / given)
    assert (found and found.names) == names
    assert lies_here(tmp_path / given) == (names is not None)


def test_a_folder_without_shards_is_none_and_a_url_stays_one(tmp_path: Path) -> None:
    assert find_shards(tmp_path) is None and find_shards(tmp_path / "absent") is None
    assert as_url(Path("s3://bucket/set/a-*.tar")) == "s3://bucket/set/a-*.tar"
    assert as_url(Path("C:/set")) is None and as_url(Path("a/b:/c")) is None
    assert not lies_here(Path("s3://bucket/set"))
