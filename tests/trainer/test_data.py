"""The order in which a run sees the pictures, and the check of what a data set gives."""

import numpy as np
import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import PictureSet, balanced_indices, batch_indices


def test_the_order_is_epochs_of_permutations_however_it_is_cut() -> None:
    whole = batch_indices(10, 0, 30, seed=4)
    assert all(sorted(whole[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert not np.array_equal(whole[:10], whole[10:20])
    np.testing.assert_array_equal(np.concatenate([batch_indices(10, i, 7, 4) for i in (0, 7, 14)]), whole[:21])
    assert not np.array_equal(batch_indices(10, 0, 10, 5), whole[:10])


def test_balanced_batches_take_every_class_equally_often_however_the_run_is_cut() -> None:
    labels = np.array([0] * 90 + [2] * 6 + [5] * 4)
    whole = balanced_indices(labels, 0, 300, seed=4)
    rounds = labels[whole].reshape(-1, 3)
    assert (np.sort(rounds, axis=1) == [0, 2, 5]).all()  # also for a class without pictures between them
    assert len(np.unique(rounds, axis=0)) == 6  # in any order, so a class has no place of its own in a batch
    for label, members in ((0, range(90)), (2, range(90, 96)), (5, range(96, 100))):
        drawn, n = whole[labels[whole] == label], len(members)
        assert sorted(drawn[:n]) == list(members)  # each of its pictures once before any of them again
    np.testing.assert_array_equal(
        np.concatenate([balanced_indices(labels, i, 7, 4) for i in range(0, 21, 7)]), whole[:21]
    )
    assert not np.array_equal(balanced_indices(labels, 0, 30, 5), whole[:30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pictures": np.zeros((4, 3, 8, 8), np.float32)},
            r"pictures must be \(N, C, H, W\) uint8, found \(4, 3, 8, 8\) float32",
        ),
        ({"test_pictures": np.zeros((2, 3, 9, 9), np.uint8)}, "test_pictures must be"),
        ({"labels": np.zeros(3, np.int64)}, r"labels must be \(4,\) int64, found \(3,\)"),
        ({"labels": np.array([0, 1, 2, 0])}, r"labels must lie in 0 \.\. 1, found 0 \.\. 2"),
        ({"pictures": np.zeros((0, 3, 8, 8), np.uint8), "labels": np.zeros(0, np.int64)}, "no pictures to train on"),
    ],
)
def test_a_data_set_of_a_plugin_is_checked(change: dict, message: str) -> None:
    arrays = {"pictures": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.array([0, 1, 1, 0])}
    held_out = {"test_pictures": np.zeros((2, 3, 8, 8), np.uint8), "test_labels": np.array([0, 1])}
    PictureSet("mine", ["a", "b"], **(arrays | held_out)).check()
    with pytest.raises(Failure, match=message):
        PictureSet("mine", ["a", "b"], **(arrays | held_out | change)).check()
