"""The noise: pinned for ever, normal, and a function of (seed, index, step) alone."""

import hashlib

import numpy as np
import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.noise import keys, normals

SHAPE = (3, 32, 32)


def test_the_first_values_never_change() -> None:
    np.testing.assert_allclose(normals(0, np.array([0]), 0, (1, 2, 2)).ravel(), PINNED, rtol=1e-6)


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (0, "d1c801598ee31ee1"), (1, "895deb10355acab8"), (7, "d8840b05ee2b4390"), (2**32, "553a7b4431bec9e8"),
        (2**53 - 1, "e571547da97ff75e"), (2**53 + 1, "a0985481fc643238"), (2**62 + 3, "0355f3bc7a82ff2c"),
        (2**63 - 1, "163f6a341b7a2722"), (2**63, "0102c7cd5bfae6a2"),
    ],
)  # fmt: skip
def test_the_noise_of_every_seed_never_changes(seed: int, digest: str) -> None:
    assert hashlib.sha256(normals(seed, np.array([0, 3]), 1, (3, 4, 4)).tobytes()).hexdigest()[:16] == digest


def test_no_two_seeds_and_no_two_pictures_share_their_noise() -> None:
    """float64 would tell neither 2^63 from 2^63 + 1 nor 2^53 from 2^53 + 1."""
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    numbers = np.array([0, 2**53, 2**53 + 1, 2**64 - 1], np.uint64)
    first = {normals(seed, numbers[i : i + 1], 0, (1, 1, 2)).tobytes() for seed in seeds for i in range(len(numbers))}
    assert len(first) == len(seeds) * len(numbers)


def test_each_picture_may_have_a_seed_of_its_own() -> None:
    together = normals(np.array([5, 2**64 - 1, 5], np.uint64), np.array([0, 1, 2]), 4, SHAPE)
    for row, seed in enumerate([5, 2**64 - 1, 5]):
        np.testing.assert_array_equal(together[row], normals(seed, np.array([row]), 4, SHAPE)[0])


def test_keys_are_whole_numbers_of_64_bits() -> None:
    assert keys("seed", 2**64 - 1, 2).tolist() == [2**64 - 1] * 2
    assert keys("seed", np.array([1, 2]), 2).tolist() == keys("seed", (np.int64(1), 2), 2).tolist() == [1, 2]
    for wrong in (-1, 2**64, 2.5, 2.0, "a", None, [1, 2.5], ["1", "2"], np.array([0.5, 1]), [[1], [2]]):
        with pytest.raises(BadInput, match=r"^seed: expected 0 \.\. 2\^64 - 1, a whole number, found "):
            keys("seed", wrong, 2)
    for wrong in ([1], [1, 2, 3], np.zeros((3, 2), int)):
        with pytest.raises(BadInput, match=r"^seed: expected 2 numbers, one for each class, found [13]"):
            keys("seed", wrong, 2)


def test_a_row_does_not_depend_on_its_company() -> None:
    together = normals(7, np.arange(20), 3, SHAPE)
    np.testing.assert_array_equal(normals(7, np.array([11, 4]), 3, SHAPE), together[[11, 4]])


def test_mean_variance_and_tails_are_those_of_normals() -> None:
    x = normals(1, np.arange(400), 0, SHAPE).ravel().astype(np.float64)
    assert abs(x.mean()) < 5 / x.size**0.5 and abs(x.var() - 1) < 5 * (2 / x.size) ** 0.5
    assert abs((np.abs(x) > 1.959964).mean() - 0.05) < 5 * (0.05 * 0.95 / x.size) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / x.size) ** 0.5


def test_seed_index_and_step_each_give_other_noise() -> None:
    base = normals(1, np.array([1]), 1, SHAPE).ravel()
    for other in (
        normals(2, np.array([1]), 1, SHAPE),
        normals(1, np.array([2]), 1, SHAPE),
        normals(1, np.array([1]), 2, SHAPE),
    ):
        assert abs(np.corrcoef(base, other.ravel())[0, 1]) < 5 / base.size**0.5


PINNED = [0.00808869581669569, 0.1521921306848526, -0.4468097388744354, -0.1914038062095642]
