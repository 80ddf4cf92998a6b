import numpy as np
import pytest

from cfgdiff.runtime.samplers import ddim, run
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.steps import STEPS, fitted_steps, sampling_of, student_timesteps

SCHEDULE = Schedule(prediction="v")


@pytest.mark.parametrize(("steps", "parts"), [(1, 1), (4, 1), (3, 5)])
def test_timesteps_fall_from_noise_to_zero_and_cut_each_step_up(steps: int, parts: int) -> None:
    coarse, fine = student_timesteps(steps, 1000), student_timesteps(steps, 1000, parts)
    assert (np.diff(fine) < 0).all()
    assert fine[-1] == 0
    np.testing.assert_allclose(fine[::parts], coarse)
    assert SCHEDULE.ratio(coarse[0]) > 50


def test_no_timestep_belongs_to_two_numbers_of_steps() -> None:
    timesteps = np.concatenate([student_timesteps(n, 1000)[:-1] for n in (1, 2, 3, 4)])
    apart = np.abs(timesteps[:, None] - timesteps) + np.eye(len(timesteps)) * 1e3
    assert apart.min() > 3


def test_fitted_steps_are_ddim_with_these_timesteps() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        return np.float32(t / 1000) * x - np.roll(x, 1, axis=3) / 2

    for n in (1, 3):
        fitted = fitted_steps(SCHEDULE, n)
        timesteps = np.array(fitted.timesteps)
        expected, own = (
            run(solve(x, timesteps, SCHEDULE, lambda step: x), predict) for solve in (ddim, fitted.sampler())
        )
        np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_bundle_is_told_what_the_network_takes_and_no_more() -> None:
    network = {"name": "guided-unet"}
    assert sampling_of(make_config({})) == {}
    assert sampling_of(make_config({"network": network, "objective": {"name": "distilled-guidance"}})) == {
        "guidance_input": (1.0, 8.0)
    }
    few = {"name": "trajectory", "options": {"steps": [2, 1], "most": 5}}
    known = sampling_of(make_config({"network": network, "objective": few}))
    assert (known["guidance_input"], known["few_steps"], list(known["fitted"])) == ((1.0, 5.0), True, [1, 2])
    few = {"name": "trajectory"}
    assert list(sampling_of(make_config({"network": network, "objective": few}))["fitted"]) == list(STEPS)
