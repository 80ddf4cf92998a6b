"""Fitted steps can say what other samplers do, and are read from bundle.json with care."""

from itertools import pairwise

import numpy as np
import pytest

from cfgdiff.runtime.fitted import Fitted, parse_fitted
from cfgdiff.runtime.samplers import SAMPLERS, run
from cfgdiff.runtime.schedule import Schedule

SCHEDULE, TIMES = Schedule(), (990.0, 700.0, 300.0, 50.0, 0.0)


def as_coefficients(order: int) -> tuple[tuple[float, ...], ...]:
    """ddim (order 1) and dpmpp-2m (2) in the form of fitted steps."""
    rows, h_before = [], 0.0
    for step, (t, s) in enumerate(pairwise(TIMES)):
        alpha, sigma, sigma_t = float(SCHEDULE.alpha(s)), float(SCHEDULE.sigma(s)), float(SCHEDULE.sigma(t))
        own = alpha - sigma / sigma_t * float(SCHEDULE.alpha(t))
        change = 0.0
        if s > 0:
            h = float(np.log(SCHEDULE.ratio(t) / SCHEDULE.ratio(s)))
            change = own * h / (2 * h_before) if order == 2 and step else 0.0
            h_before = h
        rows.append((sigma / sigma_t, own, change, 0.0))
    return tuple(rows)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp-2m", 2)])
def test_with_the_coefficients_of_a_sampler_it_is_that_sampler(name: str, order: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    fitted, plain = Fitted(TIMES, as_coefficients(order), 2.0).sampler(), SAMPLERS[name].solve
    found, expected = (
        run(solve(x, np.array(TIMES), SCHEDULE, lambda step: x), lambda x, t: np.tanh(x + t / 1000))
        for solve in (fitted, plain)
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": [9, 1]},
        {"timesteps": [9, 0, 0]},
        {"coefficients": [["a", 0, 0, 0]]},
        {"coefficients": None},
        {"interval": [1, 2, 3]},
        {"coefficients": [[1, 0, float("nan"), 0]]},
        {"coefficients": [[1, 0, 0, float("inf")]]},
        {"coefficients": [[1, 0, 0]]},
        {"timesteps": [float("nan"), 0]},
        {"timesteps": [float("inf"), 0]},
        {"timesteps": [-9, 0]},
        {"guidance": float("nan")},
    ],
)
def test_what_is_not_as_it_must_be_is_refused(wrong: dict) -> None:
    right = {"timesteps": [9, 0], "coefficients": [[1, 0, 0, 0]], "guidance": 2}
    assert (
        parse_fitted(right)
        == parse_fitted(right | {"interval": None})
        == Fitted((9.0, 0.0), ((1.0, 0.0, 0.0, 0.0),), 2.0)
    )
    assert parse_fitted(right | {"interval": [0.5, 3]}).interval == (0.5, 3.0)
    with pytest.raises((ValueError, TypeError)):
        parse_fitted(right | wrong)
