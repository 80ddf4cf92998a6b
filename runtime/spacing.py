"""Spacings: the t of a sampler's evaluations, from a number of them or from the caller. It knows samplers by their names only."""

from collections.abc import Callable, Sequence

import numpy as np

from .errors import BadInput, named
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
SPACINGS: dict[str, Spacing] = {
    "uniform": uniform, "quadratic": quadratic, "log-snr": log_snr, "karras": karras,
}  # fmt: skip
# What the published CIFAR-10 tables use; the papers' own for ddpm and ddim; k-diffusion's for euler and euler-a.
DEFAULT_SPACINGS = {
    "ddpm": "uniform", "ddim": "uniform", "dpmpp-2m": "karras", "dpmpp-3m": "log-snr", "unipc": "log-snr", "ipndm": "karras",
    "heun": "karras", "euler": "karras", "euler-a": "karras",
}  # fmt: skip


def evaluations(sampler: str, steps: int | None, timesteps: Sequence[float] | None, default: int) -> int:
    """`steps` where given; else the evaluations that `timesteps` are for, one each, but two with heun after the first; else `default`."""
    if steps is not None or timesteps is None:
        return default if steps is None else steps
    return 2 * len(timesteps) - 1 if sampler == "heun" else len(timesteps)


def timesteps_for(sampler: str, steps: int, schedule: Schedule, spacing: str | None = None,
                  timesteps: Sequence[float] | None = None) -> np.ndarray:  # fmt: skip
    """The timesteps of `steps` network evaluations, (steps + 1,) float64, falling to 0.

    For heun all but the first stand there twice, as it evaluates twice. Where `steps` is even the last stands once, and the step to it is
    Euler's: no evaluation is left over.

    Args:
        sampler: the name of a sampler, of `DEFAULT_SPACINGS`.
        spacing: one of `SPACINGS`; the sampler's where None.
        timesteps: the t themselves, falling, in (0, T], as many as `steps`; for heun steps // 2 + 1.

    Raises:
        BadInput: naming --spacing or --timesteps.
    """
    n = steps // 2 + 1 if sampler == "heun" else steps
    if timesteps is not None and spacing is not None:
        raise BadInput(f"--spacing: expected it or --timesteps, found both ({spacing}); leave one out")
    if timesteps is not None and len(timesteps) != n:
        raise BadInput(f"--timesteps: expected {n} for {steps} evaluations with {sampler}, found {len(timesteps)}; correct it or --steps")
    if timesteps is not None:
        levels = _given(timesteps, schedule)
    else:
        levels = _spaced(n, schedule, DEFAULT_SPACINGS[sampler] if spacing is None else spacing)
    if sampler == "heun":
        levels = np.repeat(levels, [1, *[2] * (n - 1)])[:steps]
    return np.append(levels, 0.0)


def find_spacing(name: str) -> Spacing:
    """The spacing of that name. Raises `BadInput` listing the choices."""
    return SPACINGS[named("--spacing", "spacing", name, SPACINGS)]


def _spaced(n: int, schedule: Schedule, spacing: str) -> np.ndarray:
    levels = find_spacing(spacing)(n, schedule)
    if not _noise_falls(levels, schedule):
        raise BadInput(f"--steps: expected fewer than {n} with spacing {spacing}, found two of the same noise; take fewer, or another")
    return levels


def _given(timesteps: Sequence[float], schedule: Schedule) -> np.ndarray:
    levels = np.array(timesteps, np.float64)
    if not (((levels > 0) & (levels <= schedule.T)).all() and _noise_falls(levels, schedule)):
        found = ", ".join(f"{t:.10g}" for t in levels)
        raise BadInput(f"--timesteps: expected falling t in (0, {schedule.T}] that differ in noise, found {found}; correct the list")
    return levels


def _noise_falls(levels: np.ndarray, schedule: Schedule) -> bool:
    """Whether every step lowers sigma / alpha. It is clipped near T, and float64 has none left at a t of 1e-12."""
    return bool((np.diff(schedule.ratio(np.append(levels, 0.0))) < 0).all())
