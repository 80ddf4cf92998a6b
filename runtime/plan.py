"""How pictures will be drawn: the sampler, its timesteps and its guidance, from what the caller said and the bundle's defaults."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .errors import BadInput
from .samplers import Sampler, find_sampler
from .spacing import DEFAULT_SPACINGS, evaluations, timesteps_for

FITTED = "fitted"


@dataclass(frozen=True)
class Plan:
    """`function` draws with `steps` network evaluations at `timesteps` (steps + 1,); `sampler` and `spacing` are their names."""

    sampler: str
    spacing: str
    steps: int
    guidance: float
    function: Sampler
    timesteps: np.ndarray


def make_plan(bundle: Bundle, sampler: str | None = None, steps: int | None = None, guidance: float | None = None,
              spacing: str | None = None, timesteps: Sequence[float] | None = None, eta: float = 0.0) -> Plan:  # fmt: skip
    """The arguments of `generate`. What `cfgdiff fit-steps` fitted is taken where it fits and the caller named no sampler.

    Raises `BadInput`.
    """
    guidance = bundle.defaults.guidance if guidance is None else guidance
    if not math.isfinite(guidance):
        raise BadInput(f"--guidance: expected a finite number, found {guidance}; 1 is plain conditional")
    name = bundle.defaults.sampler if sampler in (None, FITTED) else str(sampler)
    steps = evaluations(name, steps, timesteps, bundle.defaults.steps)
    if steps < 1:
        raise BadInput(f"--steps: expected 1 or more, found {steps}")
    fitted = bundle.fitted.get(steps)
    plain = spacing is None and timesteps is None and eta == 0
    if sampler == FITTED and (fitted is None or not plain):
        there = ", ".join(map(str, sorted(bundle.fitted))) or "none"
        raise BadInput(f"--sampler: fitted takes no spacing, and --steps of {there} for this model, found {steps}; see cfgdiff fit-steps")
    if fitted is not None and plain and (sampler == FITTED or (sampler is None and guidance == fitted.guidance)):
        return Plan(FITTED, FITTED, steps, guidance, fitted.sampler(), np.array(fitted.timesteps))
    function = find_sampler(name, eta)
    chosen = timesteps_for(name, steps, bundle.schedule, spacing, timesteps)
    return Plan(name, "explicit" if timesteps is not None else spacing or DEFAULT_SPACINGS[name], steps, guidance, function, chosen)
