"""A sampler whose timesteps and coefficients were fitted to one model, for few evaluations: `cfgdiff fit-steps` makes them.

Every solver of the probability-flow ODE that is linear in what the network said is a step of this form; a fitted one takes the
coefficients that lead closest to where many small steps lead, instead of those of a Taylor series.
"""

import math
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from .samplers import Noise, Predict, Sampler
from .schedule import Schedule

TERMS = 4  # x, x0, and the last two changes of x0


@dataclass(frozen=True)
class Fitted:
    """For N evaluations: `timesteps` (N + 1,) decreasing to 0, `coefficients` (N, 4) of x, x0, x0 - x0', x0' - x0''.

    They are right for the w `guidance` inside its `interval` of sigma / alpha alone (None: everywhere).
    """

    timesteps: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]
    guidance: float
    interval: tuple[float, float] | None = None

    def sampler(self) -> Sampler:
        """As the samplers of `SAMPLERS`, for its own timesteps."""

        def sample(predict: Predict, x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> np.ndarray:
            said: list[np.ndarray] = []  # x0 of the last three evaluations, the newest first
            for (t, _), row in zip(pairwise(timesteps.tolist()), self.coefficients, strict=True):
                said = [schedule.to_x0(predict(x, t), x, t), *said[:2]]
                x = np.asarray(sum(c * term for c, term in zip(row, terms(x, said), strict=False)))
            return x.astype(np.float32, copy=False)

        return sample


def terms(x: np.ndarray, said: list[np.ndarray]) -> list[np.ndarray]:
    """What a step is made of: x, x0 and its last changes, as many as there are."""
    return [x, said[0], *(a - b for a, b in pairwise(said))]


def parse_interval(tree: Any) -> tuple[float, float] | None:
    """From bundle.json, where it may be null. Raises ValueError or TypeError for what is not two numbers."""
    if tree is None:
        return None
    lo, hi = tree
    return float(lo), float(hi)


def parse_fitted(tree: Any) -> Fitted:
    """From bundle.json. Raises ValueError, KeyError, TypeError or OverflowError for what is not as it must be."""
    found = Fitted(
        tuple(float(t) for t in tree["timesteps"]),
        tuple(tuple(float(c) for c in row) for row in tree["coefficients"]),
        float(tree["guidance"]),
        parse_interval(tree.get("interval")),
    )
    if len(found.timesteps) != len(found.coefficients) + 1 or found.timesteps[-1] != 0:
        raise ValueError("timesteps and coefficients do not belong together")
    if any(len(row) != TERMS for row in found.coefficients) or any(s >= t for t, s in pairwise(found.timesteps)):
        raise ValueError(f"expected falling timesteps and {TERMS} coefficients for each")
    if not all(map(math.isfinite, (*found.timesteps, *chain(*found.coefficients), found.guidance))):
        raise ValueError("expected finite numbers")
    return found
