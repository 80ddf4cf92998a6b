"""Samplers as pure functions `(predict, x, timesteps, schedule, noise) -> x0`, and the timesteps they are given.

    predict(x, t)   the network's answer (eps or v) at x_t, (B, C, H, W); t is a float
    x               the initial latent, standard normal, (B, C, H, W) float32
    timesteps       (n + 1,) float64, decreasing, the last one 0 (clean): n evaluations
    noise(step)     standard normals like x; step 1, 2, .. (0 was the latent)
    returns x0      (B, C, H, W) float32, in units of data_std

No state, no output, no engine. The coefficients are float64 scalars, the pictures float32.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .errors import BadInput, nearest
from .schedule import Schedule

Predict = Callable[[np.ndarray, float], np.ndarray]
Noise = Callable[[int], np.ndarray]
Sampler = Callable[[Predict, np.ndarray, np.ndarray, Schedule, Noise], np.ndarray]


def ddpm(predict: Predict, x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> np.ndarray:
    """Algorithm 2 of DDPM (Ho et al. 2020), with the posterior variance of equation 7; steps may be longer than 1 (t -> s)."""
    for step, (t, s) in enumerate(pairwise(timesteps.tolist()), start=1):
        bar_t, bar_s = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
        alpha, beta = bar_t / bar_s, 1 - bar_t / bar_s
        eps = schedule.to_eps(predict(x, t), x, t)
        x = (x - beta / np.sqrt(1 - bar_t) * eps) / np.sqrt(alpha)  # the mean, equation 11
        if s > 0:
            x = x + np.sqrt(beta * (1 - bar_s) / (1 - bar_t)) * noise(step)  # beta tilde
    return x.astype(np.float32, copy=False)


def ddim(predict: Predict, x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> np.ndarray:
    """DDIM with eta = 0 (Song et al. 2021, equation 12)."""
    for t, s in pairwise(timesteps.tolist()):
        prediction = predict(x, t)
        x0, eps = schedule.to_x0(prediction, x, t), schedule.to_eps(prediction, x, t)
        x = float(schedule.alpha(s)) * x0 + float(schedule.sigma(s)) * eps
    return x.astype(np.float32, copy=False)


def dpmpp_2m(predict: Predict, x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> np.ndarray:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in lambda = ln(alpha / sigma); the step to t = 0 is x0 itself."""
    before: tuple[np.ndarray, float] | None = None  # x0 of the step before, and its step in lambda
    for t, s in pairwise(timesteps.tolist()):
        x0 = schedule.to_x0(predict(x, t), x, t)
        if s == 0:
            x = x0
            break
        h = float(np.log(schedule.ratio(t) / schedule.ratio(s)))
        guess = x0
        if before is not None:
            r = before[1] / h
            guess = x0 + (x0 - before[0]) * (1 / (2 * r))
        x = float(schedule.sigma(s) / schedule.sigma(t)) * x - float(schedule.alpha(s)) * np.expm1(-h) * guess
        before = x0, h
    return x.astype(np.float32, copy=False)


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp-2m": dpmpp_2m}
RHO, RATIO_MAX, RATIO_MIN = 7.0, 160.0, 0.004  # Karras et al. 2022, equation 5, at sigma_data 0.5


def find_sampler(name: str) -> Sampler:
    """The sampler of that name. Raises `BadInput` listing the choices."""
    if name not in SAMPLERS:
        raise BadInput(f"--sampler: no sampler '{name}'; choose from {', '.join(SAMPLERS)}{nearest(name, list(SAMPLERS))}")
    return SAMPLERS[name]


def timesteps_for(sampler: str, steps: int, schedule: Schedule) -> np.ndarray:
    """(steps + 1,) float64, decreasing to 0: uniform in t for ddpm and ddim, rho = 7 in sigma / alpha for dpmpp-2m."""
    if sampler != "dpmpp-2m":
        return np.linspace(schedule.T, 0, steps + 1)
    ramp = np.linspace(RATIO_MAX ** (1 / RHO), RATIO_MIN ** (1 / RHO), steps) ** RHO
    return np.append(schedule.t_of_ratio(ramp), 0.0)
