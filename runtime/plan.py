"""A request resolved against a bundle: every choice made and checked, once. It knows no engines, files or flags."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .bundle import PACKAGED, Bundle, Model
from .errors import BadInput, named, whole_number
from .fitted import Fitted
from .given import edited_picture, smaller_pictures
from .guidance import Guidance
from .noise import keys
from .request import Blend, Request, Stage, class_labels
from .samplers import SAMPLERS, Solve, solver
from .spacing import SPACINGS, timesteps_for

FITTED, EXPLICIT, MOST_STEPS = "fitted", "explicit", 1_000_000
OTHER_MODEL = f"take a model of many steps, as {PACKAGED}"


class Course(NamedTuple):
    """How pictures are drawn: `solve` at `timesteps` (steps + 1,), falling to 0; `sampler` and `spacing` name both.

    `evaluations` are those of the whole schedule; an edit of less strength takes fewer.
    """

    sampler: str
    spacing: str
    evaluations: int
    solve: Solve
    timesteps: np.ndarray


class End(NamedTuple):
    """The other end of an interpolation: for each picture its class and seed, and the share of the way to it, (N,)."""

    labels: np.ndarray
    seeds: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """All that N pictures depend on but the engine.

    Attributes:
        request: what was asked for; of N pictures or more, see `take`.
        labels, seeds, indices, weights: class, seed, number and w of each picture, (N,).
        end: what is interpolated to.
        known: x0 of the picture that is edited, (C, H, W) float32.
        low: the smaller pictures that a super-resolution stage enlarges, (N, h, w, C) uint8.
        stages: the plans of a cascade's stages, whose `low` is still to be drawn.
    """

    request: Request
    bundle: Model
    course: Course
    guidance: Guidance
    labels: np.ndarray
    seeds: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    end: End | None
    known: np.ndarray | None
    low: np.ndarray | None = None
    stages: "tuple[Plan, ...]" = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Evaluations a picture, those of a cascade's stages aside."""
        return len(self.course.timesteps) - 1

    @property
    def evaluations(self) -> int:
        """Evaluations a picture, of all networks."""
        return self.steps + sum(stage.steps for stage in self.stages)

    @property
    def mask(self) -> np.ndarray | None:
        """Where the edited picture is drawn anew, (H, W) bool; None: everywhere."""
        return None if self.request.edit is None else self.request.edit.mask

    @property
    def rows(self) -> int:
        """The most rows of the network that the pictures take."""
        own = self.steps * self.bundle.rows(len(self), len(self) if (self.weights != 1).any() else 0)
        return own + sum(stage.rows for stage in self.stages)

    def batch(self, most: int) -> int:
        """Pictures at a time on an engine that takes `most` rows: for rescaling, `guided` passes it two a picture."""
        return min(self.request.batch, max(1, most // (2 if self.guidance.rescale else 1)))

    def take(self, positions: slice | Sequence[int] | np.ndarray) -> "Plan":
        """Of these pictures alone, which stay what they are."""
        end = None if self.end is None else End(*(array[positions] for array in self.end))
        each = {name: getattr(self, name)[positions] for name in ("labels", "seeds", "indices", "weights")}
        low, stages = self.low, tuple(stage.take(positions) for stage in self.stages)
        return replace(self, end=end, low=None if low is None else low[positions], stages=stages, **each)


def resolve(bundle: Model, request: Request) -> Plan:
    """Make and check every choice that a request leaves to the bundle.

    The steps that `cfgdiff fit-steps` fitted are taken where they fit and no sampler is named.

    Raises:
        BadInput: naming the parameter.
    """
    guidance = guidance_of(bundle, request)
    course = _course(bundle, request, guidance)
    _refuse_idle(bundle, request, guidance, course)
    labels, seed, indices = class_labels(bundle, request.classes), request.seed, request.indices
    n = len(labels)
    whole_number("batch", request.batch)
    if len(guidance.weights) not in (1, n):
        raise BadInput(f"guidance: expected 1 or {n} numbers, one for each class, found {len(guidance.weights)}")
    if indices is None:
        indices = np.arange(n) if np.ndim(seed) == 0 else np.zeros(n, np.int64)
    return Plan(
        request, bundle, course, guidance, labels, keys("seed", seed, n), keys("indices", indices, n),
        np.broadcast_to(np.array(guidance.weights), n),
        None if request.blend is None else _end(bundle, request.blend, n),
        None if request.edit is None else edited_picture(bundle, request.edit), smaller_pictures(bundle, request, n),
        _stages(bundle, request, n),
    )  # fmt: skip


def guidance_of(bundle: Model, request: Request) -> Guidance:
    """How a request's predictions are guided. Raises `BadInput`, naming the parameter."""
    defaults = bundle.defaults
    if bundle.guidance_input:
        _refuse_two_rows(bundle, request)
    weights = _weights(defaults.guidance if request.guidance is None else request.guidance)
    interval = defaults.interval if request.interval is None else _interval(request.interval)
    return Guidance(weights, interval, request.rescale, request.threshold)


def _refuse_two_rows(bundle: Model, request: Request) -> None:
    """Raises `BadInput` for what needs predictions without guidance beside the guided ones, and for other w."""
    for parameter, given in (("interval", request.interval is not None), ("rescale", request.rescale != 0)):
        if given:
            raise BadInput(
                f"{parameter}: guidance is inside the network of {bundle.name}; leave it out, or {OTHER_MODEL}"
            )
    assert bundle.guidance_input
    lo, hi = bundle.guidance_input
    if request.guidance is not None and (wrong := [w for w in _weights(request.guidance) if not lo <= w <= hi]):
        raise BadInput(
            f"guidance: {bundle.name} was trained for {lo:g} .. {hi:g}, found {wrong[0]:g}; take one of these"
        )


def _weights(guidance: Any) -> tuple[float, ...]:
    """One w, or one for each picture: a number, or a list or array of them. Equal ones are one."""
    try:
        weights = np.atleast_1d(np.asarray(guidance, np.float64))
    except (TypeError, ValueError):
        weights = np.zeros((0, 0))
    if weights.ndim != 1 or isinstance(guidance, str):
        expected = "expected a number, or a list of one for each picture"
        raise BadInput(f"guidance: {expected}, found {guidance!r:.60}; 1 is plain conditional")
    every = tuple(weights.tolist())
    return every[:1] if len(set(every)) == 1 else every


def _interval(interval: Any) -> tuple[float, float] | None:
    """Two numbers, or None where they are no limits."""
    try:
        lo, hi = (float(value) for value in interval)
    except (TypeError, ValueError):
        raise BadInput(f"interval: expected two numbers LO < HI, found {interval!r:.60}; as in 0.3,5") from None
    return None if (lo, hi) == (0.0, math.inf) else (lo, hi)


def _course(bundle: Model, request: Request, guidance: Guidance) -> Course:
    asked, strength = request.sampler, request.strength
    if not 0 < strength <= 1:
        kept = "1 keeps nothing of the picture, 0.5 its outlines"
        raise BadInput(f"edit.strength: expected a share in (0, 1], found {strength}; {kept}")
    if asked is not None:
        asked = named("sampler", "sampler", str(asked), (*SAMPLERS, FITTED))
    name = named("sampler", "sampler", bundle.defaults.sampler, SAMPLERS) if asked in (None, FITTED) else str(asked)
    steps = request.steps
    if steps is None:
        listed = request.timesteps
        steps = bundle.defaults.steps if listed is None else SAMPLERS[name].evaluations(len(listed))
    steps = whole_number("steps", steps, most=MOST_STEPS)
    plain = strength == 1 and request.eta == 0 and request.spacing is None and request.timesteps is None
    fitted = bundle.fitted.get(steps) if plain else None
    if bundle.few_steps and (fitted is None or asked not in (None, FITTED)):
        _refuse_many_steps(bundle, request, steps)
    if asked == FITTED and fitted is None:
        possible = ", ".join(map(str, sorted(bundle.fitted))) or "none"
        takes = f"fitted takes no spacing or strength, and `steps` of {possible} for this model"
        raise BadInput(f"sampler: {takes}, found {steps}; see cfgdiff fit-steps")
    if fitted and (asked == FITTED or (asked is None and _made_for(fitted, guidance))):
        return Course(FITTED, FITTED, steps, fitted.sampler(), np.array(fitted.timesteps))
    spacing = None if request.spacing is None else named("spacing", "spacing", str(request.spacing), SPACINGS)
    solve = solver(name, request.eta)
    timesteps = timesteps_for(name, steps, bundle.schedule, spacing, request.timesteps)
    start = strength * bundle.schedule.T
    if timesteps[0] > start:
        timesteps = np.append(start, timesteps[timesteps < start])
    spacing = EXPLICIT if request.timesteps is not None else spacing or SAMPLERS[name].spacing
    return Course(name, spacing, steps, solve, timesteps)


def _made_for(fitted: Fitted, guidance: Guidance) -> bool:
    return fitted.guidance is None or guidance == Guidance((fitted.guidance,), fitted.interval)


def _refuse_many_steps(bundle: Model, request: Request, steps: int) -> NoReturn:
    """Raises `BadInput` for the parameter by which a request asks a few-step model for other steps than it has."""
    possible = ", ".join(map(str, sorted(bundle.fitted)))
    asked = {
        "edit.strength": (request.strength != 1, f"found {request.strength:g}"),
        "sampler": (request.sampler not in (None, FITTED), f"found {request.sampler}"),
        "eta": (request.eta != 0, f"found {request.eta:g}"),
        "spacing": (request.spacing is not None, f"found {request.spacing}"),
        "timesteps": (request.timesteps is not None, "found others"),
    }
    parameter, found = next(
        ((name, text) for name, (wrong, text) in asked.items() if wrong), ("steps", f"found {steps}")
    )
    trained = f"{bundle.name} was trained for its own steps, {possible} in number, from noise alone"
    raise BadInput(f"{parameter}: {trained}; {found}; {OTHER_MODEL}")


def _refuse_idle(bundle: Model, request: Request, guidance: Guidance, course: Course) -> None:
    """What would change nothing is a mistake, not silence. Raises `BadInput`."""
    own = [bundle.defaults.interval]  # asking for the model's interval, or for that of the fitted steps, is no mistake
    if course.sampler == FITTED:
        own.append(bundle.fitted[course.evaluations].interval)
    limited = request.interval is not None and guidance.interval not in own
    levels, (lo, hi) = bundle.schedule.ratio(course.timesteps[:-1]), guidance.limits
    limits = limited and not (lo <= levels.min() and levels.max() <= hi)  # limits around all levels are none
    for parameter, acts in (("interval", limits), ("rescale", guidance.rescale > 0)):
        if acts and guidance.unguided:
            effect = "has no effect at guidance 1, which is plain conditional"
            raise BadInput(f"{parameter}: {effect}; leave it out, or give another `guidance`")
    # Of timesteps that the caller chose one by one, none need be guided: the interval must only meet the schedule.
    least, most = levels.min(), levels.max()
    if course.spacing == EXPLICIT:
        least, most = 0.0, float(bundle.schedule.ratio(bundle.schedule.T))
    if limited and (hi < least or most < lo):
        expected = f"expected a part of {least:.3g} .. {most:.3g}"
        raise BadInput(f"interval: {expected}, found {lo:g},{hi:g}; nothing would be guided")


def _end(bundle: Model, blend: Blend, n: int) -> End:
    seeds, labels = keys("blend.seed", blend.seed, n), class_labels(bundle, blend.classes)
    shares = np.array(blend.shares, np.float64)
    if not len(shares) == len(labels) == n:
        raise BadInput(f"blend: expected {n} shares and classes, found {len(shares)} and {len(labels)}")
    if not ((shares >= 0) & (shares <= 1)).all():  # nor NaN
        raise BadInput(f"blend.shares: expected shares of 0 .. 1, found {', '.join(f'{share:g}' for share in shares)}")
    return End(labels, seeds, shares)


def _stages(bundle: Model, request: Request, n: int) -> tuple[Plan, ...]:
    """The plans of a cascade's stages."""
    below, asked = bundle.models if isinstance(bundle, Bundle) else (bundle,), request.stages
    if asked and len(asked) != len(below) - 1:
        raise BadInput(f"stages: expected {len(below) - 1}, one for each of {bundle.name}, found {len(asked)}")
    if request.edit is not None and below[1:]:
        raise BadInput(f"edit: {bundle.name} is a cascade, which edits no pictures; take its base alone, by its `size`")
    plans = []
    for model, stage, settings in zip(below, below[1:], asked or [Stage()] * len(below), strict=False):
        c, h, w = model.image_shape
        stand_in = np.broadcast_to(np.uint8(0), (n, h, w, c))  # for the pictures to come
        asks = Request(
            request.classes, settings.steps, settings.guidance, request.seed, settings.sampler,
            interval=settings.interval, indices=request.indices, blend=request.blend, low=stand_in, batch=request.batch,
            condition_noise=settings.noise,
        )  # fmt: skip
        try:
            plans.append(resolve(stage, asks))
        except BadInput as error:  # in the words of a `Stage`
            parameter, _, text = str(error).partition(": ")
            raise BadInput(f"stage_{parameter.removeprefix('condition_')}: {text}") from None
    return tuple(plans)
