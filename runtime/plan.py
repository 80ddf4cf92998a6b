"""How pictures will be drawn: the sampler, its timesteps and the guidance, from what the caller said and the bundle's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .errors import BadInput
from .guidance import Guidance
from .samplers import Sampler, find_sampler
from .spacing import DEFAULT_SPACINGS, evaluations, timesteps_for

FITTED = "fitted"


@dataclass(frozen=True)
class Plan:
    """`function` draws with `steps` network evaluations at `timesteps` (steps + 1,); `sampler` and `spacing` are their names.

    `asked` are the evaluations of the whole schedule; `steps` are fewer where only a share of it is gone through.
    """

    sampler: str
    spacing: str
    asked: int
    steps: int
    guidance: Guidance
    function: Sampler
    timesteps: np.ndarray


def make_plan(bundle: Bundle, sampler: str | None = None, steps: int | None = None, guidance: float | Sequence[float] | None = None,
              spacing: str | None = None, timesteps: Sequence[float] | None = None, eta: float = 0.0,
              interval: tuple[float, float] | None = None, rescale: float = 0.0, threshold: float | None = None,
              strength: float = 1.0) -> Plan:  # fmt: skip
    """The arguments of `generate`. What `cfgdiff fit-steps` fitted is taken where it fits and the caller named no sampler.

    Args:
        strength: in (0, 1], the share of the schedule that is gone through; below 1 without the evaluations at higher t.

    Raises:
        BadInput: naming the flag.
    """
    weights = bundle.defaults.guidance if guidance is None else guidance
    every = tuple(weights) if isinstance(weights, Sequence) else (weights,)
    distinct = tuple(dict.fromkeys(every))
    spread = Guidance(
        distinct if len(distinct) == 1 else every, bundle.defaults.interval if interval is None else interval, rescale, threshold
    )
    if not 0 < strength <= 1:
        raise BadInput(f"--strength: expected a share in (0, 1], found {strength}; 1 keeps nothing of the picture, 0.5 its outlines")
    name = bundle.defaults.sampler if sampler in (None, FITTED) else str(sampler)
    steps = evaluations(name, steps, timesteps, bundle.defaults.steps)
    if steps < 1:
        raise BadInput(f"--steps: expected 1 or more, found {steps}")
    fitted = bundle.fitted.get(steps)
    plain = spacing is None and timesteps is None and eta == 0 and strength == 1
    if sampler == FITTED and (fitted is None or not plain):
        there = ", ".join(map(str, sorted(bundle.fitted))) or "none"
        raise BadInput(
            f"--sampler: fitted takes no spacing or strength, and --steps of {there} for this model, found {steps}; see cfgdiff fit-steps"
        )
    right = fitted is not None and spread == Guidance((fitted.guidance,), fitted.interval)
    if fitted is not None and plain and (sampler == FITTED or (sampler is None and right)):
        return Plan(FITTED, FITTED, steps, steps, spread, fitted.sampler(), np.array(fitted.timesteps))
    function = find_sampler(name, eta)
    chosen = _shortened(timesteps_for(name, steps, bundle.schedule, spacing, timesteps), strength * bundle.schedule.T)
    spacing_name = "explicit" if timesteps is not None else spacing or DEFAULT_SPACINGS[name]
    return Plan(name, spacing_name, steps, len(chosen) - 1, spread, function, chosen)


def _shortened(timesteps: np.ndarray, start: float) -> np.ndarray:
    """From `start` on: it, and those below it. (n,)."""
    return timesteps if timesteps[0] <= start else np.append(start, timesteps[timesteps < start])
