"""A sampler with timesteps and coefficients fitted to one model, for few evaluations: `cfgdiff fit-steps` makes it.

Every solver of the probability-flow ODE that is linear in the network's predictions takes steps of this form. A fitted
one has the coefficients that end closest to where many small steps end, instead of those of a Taylor series.
"""

import math
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from .samplers import Noise, Solve, Steps
from .schedule import Schedule

TERMS = 4  # x, x0, and the last two changes of x0


@dataclass(frozen=True)
class Fitted:
    """For N evaluations: `timesteps` (N + 1,) decreasing to 0, `coefficients` (N, 4) of x, x0, x0 - x0', x0' - x0''.

    They are right only for the w `guidance` inside `interval` of sigma / alpha (None: at every noise level), or for
    every w where `guidance` is None.
    """

    timesteps: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    guidance: float | None = None
    interval: tuple[float, float] | None = None

    def sampler(self) -> Solve:
        """The sampler's function, for its own timesteps."""

        def sample(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
            x0s: list[np.ndarray] = []  # of the last three evaluations, the newest first
            for (t, _), row in zip(pairwise(timesteps.tolist()), self.coefficients, strict=True):
                x0s = [schedule.to_x0((yield x, t), x, t), *x0s[:2]]
                x = np.asarray(sum(c * term for c, term in zip(row, terms(x, x0s), strict=False)))
            return x.astype(np.float32, copy=False)

        return sample


def terms(x: np.ndarray, x0s: list[np.ndarray]) -> list[np.ndarray]:
    """The terms of a step: x, x0 and its last changes, as many as there are; `x0s` has the newest first."""
    return [x, x0s[0], *(a - b for a, b in pairwise(x0s))]


def parse_interval(tree: Any) -> tuple[float, float] | None:
    """From bundle.json, where it may be null. Raises ValueError or TypeError for what is not two numbers."""
    if tree is None:
        return None
    lo, hi = tree
    return float(lo), float(hi)


def parse_fitted(tree: Any) -> Fitted:
    """From bundle.json. Raises ValueError, KeyError, TypeError or OverflowError for damaged entries."""
    fitted = Fitted(
        tuple(float(t) for t in tree["timesteps"]),
        tuple(tuple(float(c) for c in row) for row in tree["coefficients"]),
        None if tree["guidance"] is None else float(tree["guidance"]),
        parse_interval(tree.get("interval")),
    )
    if len(fitted.timesteps) != len(fitted.coefficients) + 1 or fitted.timesteps[-1] != 0:
        raise ValueError("timesteps and coefficients do not belong together")
    if any(len(row) != TERMS for row in fitted.coefficients) or any(s >= t for t, s in pairwise(fitted.timesteps)):
        raise ValueError(f"expected falling timesteps and {TERMS} coefficients for each")
    if not all(map(math.isfinite, (*fitted.timesteps, *chain(*fitted.coefficients), fitted.guidance or 0.0))):
        raise ValueError("expected finite numbers")
    return fitted
