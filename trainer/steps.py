"""The few steps of a distilled network: their timesteps, and what a bundle must say of such a network."""

from itertools import pairwise
from typing import Any

import numpy as np

from cfgdiff.runtime.fitted import Fitted
from cfgdiff.runtime.schedule import Schedule

from .config import ENLARGING, TAKES_W, Config
from .super_resolution import condition_of

STEPS = (1, 2, 3, 4)
MOST_GUIDANCE = 8.0  # w is learned from 1 to here
POWER = 1.5  # timesteps fall as 1 - (i / N)^POWER, close to those that fit-steps finds
APART = 0.004  # of T, between the starts of N and N + 1 steps


def student_timesteps(steps: int, T: int, parts: int = 1) -> np.ndarray:  # noqa: N803
    """The timesteps of N steps, each in `parts`, falling to 0: (N parts + 1,).

    No timestep belongs to two N, not even the first: the network knows only t, and the first of 1 step must predict
    something else than the first of 4. Nothing of a picture is left at any of the starts.
    """
    u = np.arange(steps * parts + 1) / (steps * parts)
    return float(T) * (1 - APART * (steps - 1)) * (1 - u**POWER)


def ddim_coefficients(schedule: Schedule, t: float, s: float) -> tuple[float, float]:
    """(a, b) of x_s = a x_t + b x0, DDIM's step from t to s (Song et al. 2021, equation 12 without noise)."""
    if s == 0:
        return 0.0, 1.0
    a = float(schedule.sigma(s) / schedule.sigma(t))
    return a, float(schedule.alpha(s)) - a * float(schedule.alpha(t))


def fitted_steps(schedule: Schedule, steps: int) -> Fitted:
    """The steps of a distilled network as a bundle holds them, for every w."""
    timesteps = student_timesteps(steps, schedule.T).tolist()
    coefficients = tuple((*ddim_coefficients(schedule, t, s), 0.0, 0.0) for t, s in pairwise(timesteps))
    return Fitted(tuple(timesteps), coefficients)


def sampling_of(config: Config) -> dict[str, Any]:
    """What sampling must know of a network beside its weights: `guidance_input`, `few_steps`, `fitted` and `condition`
    of `Model`."""
    if config.network.name == ENLARGING[0]:
        return {"condition": condition_of(config.objective, config.schedule)}
    if config.network.name != TAKES_W:
        return {}
    objective = config.objective
    known: dict[str, Any] = {"guidance_input": (1.0, float(objective.options.get("most", MOST_GUIDANCE)))}
    if objective.name == "trajectory":
        steps = objective.options.get("steps", STEPS)
        known |= {"few_steps": True, "fitted": {n: fitted_steps(config.schedule, n) for n in sorted(steps)}}
    return known
