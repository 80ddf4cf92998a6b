"""Spacings against their formulas; lists of timesteps as a caller gives them, good and bad."""

import numpy as np
import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.samplers import SAMPLERS
from cfgdiff.runtime.schedule import KINDS, Schedule
from cfgdiff.runtime.spacing import SPACINGS, timesteps_for

COSINE = Schedule()


def test_every_sampler_has_a_spacing() -> None:
    assert (
        {sampler.spacing for sampler in SAMPLERS.values()}
        <= SPACINGS.keys()
        == {"uniform", "quadratic", "log-snr", "karras"}
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 150])
@pytest.mark.parametrize("spacing", list(SPACINGS))
def test_spacings_fall_from_the_noisy_end_to_zero(spacing: str, steps: int, kind: str) -> None:
    schedule = Schedule(kind=kind)
    timesteps = timesteps_for("unipc", steps, schedule, spacing)
    assert timesteps.shape == (steps + 1,) and timesteps.dtype == np.float64
    assert timesteps[-1] == 0 and (np.diff(timesteps) < 0).all()
    in_t = spacing in ("uniform", "quadratic")
    assert timesteps[0] == pytest.approx(1000 if in_t else float(schedule.t_of_ratio(160)))
    if steps > 1 and not in_t:
        assert float(schedule.ratio(timesteps[-2])) == pytest.approx(0.004)


def test_even_in_t_and_in_its_root() -> None:
    np.testing.assert_array_equal(timesteps_for("ddpm", 1000, COSINE), np.arange(1000, -1, -1.0))
    np.testing.assert_allclose(timesteps_for("ddim", 4, COSINE, "quadratic"), [1000, 562.5, 250, 62.5, 0])


def test_even_in_the_noise_level_as_karras_and_as_its_logarithm() -> None:
    levels = COSINE.ratio(timesteps_for("dpmpp-2m", 12, COSINE)[:-1])
    expected = [(160 ** (1 / 7) + i / 11 * (0.004 ** (1 / 7) - 160 ** (1 / 7))) ** 7 for i in range(12)]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    levels = COSINE.ratio(timesteps_for("unipc", 12, COSINE)[:-1])
    np.testing.assert_allclose(levels, [160 * (0.004 / 160) ** (i / 11) for i in range(12)], rtol=1e-6)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_without_a_spacing_it_is_the_samplers(sampler: str) -> None:
    expected = timesteps_for(sampler, 9, COSINE, SAMPLERS[sampler].spacing)
    np.testing.assert_array_equal(timesteps_for(sampler, 9, COSINE), expected)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [90]), (2, [90, 50]), (3, [90, 50, 50]), (4, [90, 50, 50, 10]), (5, [90, 50, 50, 10, 10])],
)
def test_heun_evaluates_twice_at_all_but_the_first_and_leaves_nothing_over(steps: int, expected: list[float]) -> None:
    given = sorted(set(expected), reverse=True)
    assert timesteps_for("heun", steps, COSINE, timesteps=given).tolist() == [*expected, 0]
    assert len(timesteps_for("heun", steps, COSINE)) == steps + 1


def test_a_list_is_taken_as_it_is_and_says_how_many_evaluations() -> None:
    assert timesteps_for("unipc", 3, COSINE, timesteps=[1000, 750.5, 1e-3]).tolist() == [1000, 750.5, 1e-3, 0]
    assert [SAMPLERS[name].evaluations(3) for name in ("ddim", "heun")] == [3, 5]
    assert [SAMPLERS["heun"].levels(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "timesteps",
    [
        [1000.5, 3, 2], [500, 3, 0], [500, 3, -1], [1, 2, 3], [500, 3, 3], [float("nan"), 3, 2], [float("inf"), 3, 2],
        [1000, 999.99, 500],  # alpha_bar is clipped there: no step at all in noise
        [500, 1, 1e-13],  # no noise in float64
    ],
)  # fmt: skip
def test_a_list_that_does_not_fall_within_the_schedule_is_refused(timesteps: list[float]) -> None:
    with pytest.raises(
        BadInput,
        match=r"^timesteps: expected falling t in \(0, 1000\] that differ in noise, found [^\n]*; correct the list$",
    ):
        timesteps_for("unipc", 3, COSINE, timesteps=timesteps)


@pytest.mark.parametrize(
    ("sampler", "steps", "expected"), [("unipc", 4, 4), ("unipc", 2, 2), ("heun", 3, 2), ("heun", 6, 4)]
)
def test_a_list_of_another_length_is_refused(sampler: str, steps: int, expected: int) -> None:
    with pytest.raises(
        BadInput, match=f"^timesteps: expected {expected} for {steps} evaluations with {sampler}, found 3; "
    ):
        timesteps_for(sampler, steps, COSINE, timesteps=[9, 5, 1])


def test_a_list_and_a_spacing_exclude_each_other() -> None:
    with pytest.raises(BadInput, match=r"^spacing: expected it or `timesteps`, found both \(karras\)"):
        timesteps_for("ddim", 2, COSINE, "karras", [9, 5])


def test_an_unknown_spacing_lists_the_choices() -> None:
    np.testing.assert_array_equal(
        timesteps_for("ddim", 3, COSINE, "Karras"), timesteps_for("ddim", 3, COSINE, "karras")
    )
    with pytest.raises(BadInput, match=r"uniform, quadratic, log-snr, karras; did you mean 'karras'"):
        timesteps_for("ddim", 3, COSINE, "karas")


def test_an_empty_name_is_no_spacing() -> None:
    with pytest.raises(BadInput, match=r"^spacing: no spacing ''; choose from uniform"):
        timesteps_for("ddim", 2, COSINE, "")


def test_more_steps_than_the_schedule_has_noise_for_are_refused() -> None:
    """The linear schedule ends at a ratio of 157, so of very many steps from 160 on two fall onto T."""
    with pytest.raises(BadInput, match=r"^steps: expected fewer than 1000 with spacing karras"):
        timesteps_for("dpmpp-2m", 1000, Schedule(kind="linear"))
