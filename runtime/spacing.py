"""Spacings: the t of a sampler's evaluations, from a number of them or from the caller."""

from collections.abc import Callable, Sequence

import numpy as np

from .errors import BadInput, named
from .samplers import SAMPLERS
from .schedule import Schedule

RHO, RATIO_MAX, RATIO_MIN = 7.0, 160.0, 0.004  # Karras et al. 2022, equation 5, at sigma_data 0.5


def uniform(n: int, schedule: Schedule) -> np.ndarray:
    """T, then even in t: T (n - i) / n. (n,)."""
    return np.linspace(schedule.T, 0, n + 1)[:-1]


def quadratic(n: int, schedule: Schedule) -> np.ndarray:
    """T, then even in sqrt(t), dense at the clean end: T ((n - i) / n)^2 (Song et al. 2021, appendix D.2). (n,)."""
    return schedule.T * np.linspace(1, 0, n + 1)[:-1] ** 2


def log_snr(n: int, schedule: Schedule) -> np.ndarray:
    """Even in ln(sigma / alpha) from RATIO_MAX to RATIO_MIN, which is half of -ln snr (Lu et al. 2022). (n,)."""
    return schedule.t_of_ratio(np.geomspace(RATIO_MAX, RATIO_MIN, n))


def karras(n: int, schedule: Schedule) -> np.ndarray:
    """Even in (sigma / alpha)^(1 / rho) from RATIO_MAX to RATIO_MIN (Karras et al. 2022, equation 5). (n,)."""
    return schedule.t_of_ratio(np.linspace(RATIO_MAX ** (1 / RHO), RATIO_MIN ** (1 / RHO), n) ** RHO)


Spacing = Callable[[int, Schedule], np.ndarray]
SPACINGS: dict[str, Spacing] = {"uniform": uniform, "quadratic": quadratic, "log-snr": log_snr, "karras": karras}


def timesteps_for(
    sampler: str, steps: int, schedule: Schedule, spacing: str | None = None, timesteps: Sequence[float] | None = None
) -> np.ndarray:
    """The timesteps of `steps` network evaluations, (steps + 1,) float64, falling to 0.

    Where a sampler evaluates twice at a level, its t is listed twice, but for the first. Where `steps` is even the last
    is listed once, and the step to it is Euler's, so no evaluation is left over.

    Args:
        sampler: the name of a sampler, in `SAMPLERS`.
        spacing: a name in `SPACINGS`; the sampler's where None.
        timesteps: the t themselves, falling, in (0, T], as many as `Sampler.levels` says.

    Raises:
        BadInput: naming the parameter.
    """
    entry = SAMPLERS[sampler]
    n = entry.levels(steps)
    if timesteps is not None and spacing is not None:
        raise BadInput(f"spacing: expected it or `timesteps`, found both ({spacing}); leave one out")
    if timesteps is not None and len(timesteps) != n:
        expected = f"expected {n} for {steps} evaluations with {sampler}, found {len(timesteps)}"
        raise BadInput(f"timesteps: {expected}; correct it or `steps`")
    spacing = entry.spacing if spacing is None else spacing
    levels = _spaced(n, schedule, spacing) if timesteps is None else _given(timesteps, schedule)
    if entry.twice:
        levels = np.repeat(levels, [1, *[2] * (n - 1)])[:steps]
    return np.append(levels, 0.0)


def _spaced(n: int, schedule: Schedule, spacing: str) -> np.ndarray:
    levels = SPACINGS[named("spacing", "spacing", spacing, SPACINGS)](n, schedule)
    if not _noise_falls(levels, schedule):
        raise BadInput(
            f"steps: expected fewer than {n} with spacing {spacing}, found two of the same noise; take fewer"
        )
    return levels


def _given(timesteps: Sequence[float], schedule: Schedule) -> np.ndarray:
    levels = np.array(timesteps, np.float64)
    if not (((levels > 0) & (levels <= schedule.T)).all() and _noise_falls(levels, schedule)):
        listed = ", ".join(f"{t:.10g}" for t in levels)
        expected = f"expected falling t in (0, {schedule.T}] that differ in noise, found {listed}"
        raise BadInput(f"timesteps: {expected}; correct the list")
    return levels


def _noise_falls(levels: np.ndarray, schedule: Schedule) -> bool:
    """Whether every step lowers sigma / alpha. It is clipped near T, and float64 has none left at a t of 1e-12."""
    return bool((np.diff(schedule.ratio(np.append(levels, 0.0))) < 0).all())
