"""The noise: pinned for ever, normal, and a function of (seed, index, step) alone."""

import numpy as np

from cfgdiff.runtime.noise import normals

SHAPE = (3, 32, 32)


def test_the_first_values_never_change() -> None:
    np.testing.assert_allclose(normals(0, np.array([0]), 0, (1, 2, 2)).ravel(), PINNED, rtol=1e-6)


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
    for other in (normals(2, np.array([1]), 1, SHAPE), normals(1, np.array([2]), 1, SHAPE), normals(1, np.array([1]), 2, SHAPE)):
        assert abs(np.corrcoef(base, other.ravel())[0, 1]) < 5 / base.size**0.5


PINNED = [0.00808869581669569, 0.1521921306848526, -0.4468097388744354, -0.1914038062095642]
