"""How pictures will be drawn: the sampler, its timesteps and the guidance, from what the caller said and the bundle's defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bundle import Model
from .errors import BadInput, named, whole
from .guidance import Guidance
from .samplers import SAMPLERS, Sampler, find_sampler
from .schedule import Schedule
from .spacing import DEFAULT_SPACINGS, SPACINGS, evaluations, timesteps_for

FITTED, MOST_STEPS = "fitted", 1_000_000


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

    def rows(self, n: int) -> int:
        """How many rows of the network n pictures take, a guided one two an evaluation."""
        return n * self.steps * (2 if any(w != 1 for w in self.guidance.weights) else 1)


def make_plan(bundle: Model, sampler: str | None = None, steps: int | None = None,
              guidance: float | Sequence[float] | np.ndarray | None = None, spacing: str | None = None,
              timesteps: Sequence[float] | None = None, eta: float = 0.0, interval: tuple[float, float] | None = None,
              rescale: float = 0.0, threshold: float | None = None, strength: float = 1.0) -> Plan:  # fmt: skip
    """The arguments of `generate`. What `cfgdiff fit-steps` fitted is taken where it fits and the caller named no sampler.

    Args:
        strength: in (0, 1], the share of the schedule that is gone through; below 1 without the evaluations at higher t.

    Raises:
        BadInput: naming the flag.
    """
    every = _weights(bundle.defaults.guidance if guidance is None else guidance)
    distinct, given = tuple(dict.fromkeys(every)), None if interval is None else _interval(interval)
    spread = Guidance(distinct if len(distinct) == 1 else every, bundle.defaults.interval if given is None else given, rescale, threshold)
    if not 0 < strength <= 1:
        raise BadInput(f"--strength: expected a share in (0, 1], found {strength}; 1 keeps nothing of the picture, 0.5 its outlines")
    asked = None if sampler is None else named("--sampler", "sampler", str(sampler), (*SAMPLERS, FITTED))
    name = named("--sampler", "sampler", bundle.defaults.sampler, SAMPLERS) if asked in (None, FITTED) else str(asked)
    steps = whole("--steps", evaluations(name, steps, timesteps, bundle.defaults.steps), most=MOST_STEPS)
    fitted = bundle.fitted.get(steps)
    plain = spacing is None and timesteps is None and eta == 0 and strength == 1
    if asked == FITTED and (fitted is None or not plain):
        there = ", ".join(map(str, sorted(bundle.fitted))) or "none"
        raise BadInput(
            f"--sampler: fitted takes no spacing or strength, and --steps of {there} for this model, found {steps}; see cfgdiff fit-steps"
        )
    right = fitted is not None and spread == Guidance((fitted.guidance,), fitted.interval)
    if fitted is not None and plain and (asked == FITTED or (asked is None and right)):
        plan = Plan(FITTED, FITTED, steps, steps, spread, fitted.sampler(), np.array(fitted.timesteps))
    else:
        spacing = None if spacing is None else named("--spacing", "spacing", str(spacing), SPACINGS)
        function = find_sampler(name, eta)
        chosen = _shortened(timesteps_for(name, steps, bundle.schedule, spacing, timesteps), strength * bundle.schedule.T)
        spacing_name = "explicit" if timesteps is not None else spacing or DEFAULT_SPACINGS[name]
        plan = Plan(name, spacing_name, steps, len(chosen) - 1, spread, function, chosen)
    own = [bundle.defaults.interval, *([fitted.interval] if fitted is not None and plan.sampler == FITTED else [])]
    _refuse_idle(plan, bundle.schedule, given is not None and given not in own)
    return plan


def _weights(guidance: Any) -> tuple[float, ...]:
    """One w, or one for each picture: a number, or a list or array of them."""
    try:
        found = np.atleast_1d(np.asarray(guidance, np.float64))
    except (TypeError, ValueError):
        found = np.zeros((0, 0))
    if found.ndim != 1 or isinstance(guidance, str):
        raise BadInput(f"--guidance: expected a number, or a list of one for each picture, found {guidance!r:.60}; 1 is plain conditional")
    return tuple(found.tolist())


def _interval(interval: Any) -> tuple[float, float]:
    try:
        lo, hi = (float(value) for value in interval)
    except (TypeError, ValueError):
        raise BadInput(f"--guidance-interval: expected two numbers LO < HI, found {interval!r:.60}; as in 0.3,5") from None
    return lo, hi


def _refuse_idle(plan: Plan, schedule: Schedule, given: bool) -> None:
    """What would change nothing is a mistake, not silence. Raises `BadInput`.

    Args:
        given: whether the caller gave an interval that is neither the model's own nor that of the fitted steps, which it chooses.
    """
    guidance, levels = plan.guidance, schedule.ratio(plan.timesteps[:-1])
    lo, hi = guidance.interval or (0.0, np.inf)
    limits = given and not (lo <= levels.min() and levels.max() <= hi)  # one around all levels is how to say everywhere
    for flag, acts in (("--guidance-interval", limits), ("--guidance-rescale", guidance.rescale > 0)):
        if acts and set(guidance.weights) == {1.0}:
            raise BadInput(f"{flag}: has no effect at guidance 1, which is plain conditional; leave it out, or give another --guidance")
    # Of timesteps that the caller chose one by one, none need be guided: then it is the schedule that an interval must not leave.
    least, most = (0.0, float(schedule.ratio(schedule.T))) if plan.spacing == "explicit" else (levels.min(), levels.max())
    if given and (hi < least or most < lo):
        raise BadInput(f"--guidance-interval: expected a part of {least:.3g} .. {most:.3g}, found {lo:g},{hi:g}; nothing would be guided")


def _shortened(timesteps: np.ndarray, start: float) -> np.ndarray:
    """From `start` on: it, and those below it. (n,)."""
    return timesteps if timesteps[0] <= start else np.append(start, timesteps[timesteps < start])
