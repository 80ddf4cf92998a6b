"""The condition of a super-resolution stage: PyTorch's own interpolation and pooling, and the same bits in both."""

import numpy as np
import pytest

from cfgdiff.runtime.schedule import Schedule
from cfgdiff.runtime.upscale import condition, enlarged, reduced

torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
PICTURES = np.random.default_rng(0).standard_normal((3, 3, 8, 12)).astype(np.float32)


def test_enlarging_by_two_is_bilinear_interpolation() -> None:
    expected = torch.nn.functional.interpolate(torch.from_numpy(PICTURES), scale_factor=2, mode="bilinear")
    np.testing.assert_allclose(enlarged(PICTURES, 2), expected, rtol=0, atol=1e-6)


def test_enlarging_by_eight_is_enlarging_by_two_thrice() -> None:
    assert np.array_equal(enlarged(PICTURES, 8), enlarged(enlarged(enlarged(PICTURES, 2), 2), 2))
    assert enlarged(PICTURES, 4).shape == (3, 3, 32, 48)


@pytest.mark.parametrize("factor", [2, 4])
def test_reducing_is_average_pooling(factor: int) -> None:
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(PICTURES), factor)
    np.testing.assert_allclose(reduced(PICTURES, factor), expected, rtol=0, atol=1e-6)


def test_training_and_sampling_make_the_same_bits() -> None:
    schedule, eps = Schedule(data_std=0.5), PICTURES[::-1].copy()
    for noise in (0.0, 130.25):
        array = condition(PICTURES, eps, noise, schedule, 2)
        tensor = condition(torch.from_numpy(PICTURES), torch.from_numpy(eps), noise, schedule, 2)
        rows = condition(torch.from_numpy(PICTURES), torch.from_numpy(eps), np.full(3, noise), schedule, 2)
        assert array.dtype == np.float32 and np.array_equal(array, tensor.numpy())
        torch.testing.assert_close(rows, tensor, rtol=0, atol=1e-6)  # float32 coefficients there


def test_the_condition_keeps_the_variance_that_the_level_says() -> None:
    rng, schedule = np.random.default_rng(1), Schedule(data_std=0.5)
    low, eps = (rng.standard_normal((4, 3, 32, 32)) * scale for scale in (0.5, 1.0))
    plain, noised = condition(low, 0 * eps, 400.0, schedule, 2), condition(low, eps, 400.0, schedule, 2)
    smoothed = float(np.var(enlarged(eps, 2)))
    assert np.var(noised - plain) == pytest.approx(float(schedule.sigma(400.0)) ** 2 * smoothed, rel=1e-6)
    assert np.var(plain) == pytest.approx(float(schedule.alpha_bar(400.0)) * smoothed, rel=0.05)
