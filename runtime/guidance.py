"""Predictions as a sampler takes them: guided, mixed, changed, watched.

Functions here return an `Evaluate`, and most wrap another; generate.py stacks them. It computes no network: its steps
yield the arguments of `Engine.predict` and are sent the answers, so that many of them can share a call.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .engine import Engine
from .errors import BadInput, Failure
from .samplers import Steps
from .schedule import Schedule

Evaluate = Callable[[np.ndarray, float], Steps]  # of x_t (B, C, H, W) and t; returns the prediction, (B, C, H, W)
LARGEST = float(np.finfo(np.float32).max)  # w is float32 in the graph


@dataclass(frozen=True)
class Guidance:
    """How predictions are guided (Ho & Salimans 2022), for one picture or for each of N.

    Attributes:
        weights: w in uncond + w (cond - uncond), 1 or N of them; 1 is plain conditional.
        interval: of sigma / alpha, where w acts; elsewhere w is 1 (Kynkaanniemi et al. 2024). None: everywhere.
        rescale: phi, 0 .. 1: the share by which the deviation of a guided prediction is brought to that of the
            conditional one (Lin et al. 2024, equation 16).
        threshold: p of dynamic thresholding, 0 < p <= 1 (Saharia et al. 2022, section 2.3): x0 is clipped at the p
            quantile of |x0| and divided by it where that exceeds 1. None: x0 as it is.

    Raises:
        BadInput: naming the parameter.
    """

    weights: tuple[float, ...]
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.weights or not np.isfinite(self.weights).all():
            listed = ", ".join(dict.fromkeys(map(str, self.weights))) or "none"
            raise BadInput(f"guidance: expected finite numbers, found {listed}; 1 is plain conditional")
        if (most := max(map(abs, self.weights))) > LARGEST:
            expected = f"expected at most {LARGEST:.3g}, as float32 holds it"
            raise BadInput(f"guidance: {expected}, found {most:g}; 1 is plain conditional")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            lo, hi = self.interval
            raise BadInput(f"interval: expected 0 <= LO < HI, found {lo},{hi}; as in 0.3,5")
        if not 0 <= self.rescale <= 1:
            raise BadInput(f"rescale: expected 0 .. 1, found {self.rescale}; 0 leaves guidance as it is")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            expected = "expected a share of the pixels in (0, 1]"
            raise BadInput(f"threshold: {expected}, found {self.threshold}; 0.995 is usual")

    @property
    def limits(self) -> tuple[float, float]:
        """The interval, or 0 and infinity."""
        return self.interval or (0.0, math.inf)

    def weights_of(self, indices: np.ndarray) -> np.ndarray:
        """w of these pictures, (B,) float32."""
        return np.array(self.weights, np.float32)[indices % len(self.weights)]

    @property
    def unguided(self) -> bool:
        """Whether w is 1 for all pictures."""
        return set(self.weights) == {1.0}


def guided(engine: Engine, schedule: Schedule, labels: np.ndarray, null_class: int, weights: np.ndarray,
           guidance: Guidance, condition: tuple[np.ndarray, ...] = ()) -> Evaluate:  # fmt: skip
    """Guided predictions for a batch of `labels` (B,) with `weights` (B,), by calls of `engine`, which errors name.

    They raise `Failure` for a prediction that is not finite, which would be a black picture.

    Args:
        condition: the further inputs of a super-resolution stage, see `Engine.predict`.
    """

    def evaluate(x: np.ndarray, t: float) -> Steps:
        x, times = x.astype(np.float32, copy=False), np.full(len(x), t, np.float32)
        lo, hi = guidance.limits
        acts = (weights != 1) & (lo <= float(schedule.ratio(t)) <= hi)
        if guidance.rescale and acts.any():
            pairs = np.concatenate([x, x]), np.concatenate([times, times])
            classes = np.concatenate([labels, np.full_like(labels, null_class)])
            further = [np.concatenate([array, array]) for array in condition]
            cond, uncond = np.split((yield *pairs, classes, np.zeros(0, np.float32), *further), 2)
            w = np.where(acts, weights, np.float32(1))[:, None, None, None]
            return finite(rescaled(uncond + w * (cond - uncond), cond, guidance.rescale), engine, t)
        if acts.all() or not acts.any():
            return finite((yield x, times, labels, weights[acts], *condition), engine, t)
        order = np.argsort(~acts, kind="stable")  # the graph guides the first G rows
        further = [array[order] for array in condition]
        prediction = yield x[order], times, labels[order], weights[order][: acts.sum()], *further
        return finite(prediction, engine, t)[np.argsort(order)]

    return evaluate


def finite(array: np.ndarray, engine: Engine, t: float) -> np.ndarray:
    """`array`, a prediction at t or, at t = 0, x0. Raises `Failure`, naming the evaluation, where it is not finite."""
    if not np.isfinite(array).all():
        damaged = "the finished picture" if t == 0 else f"the network's prediction at t = {t:.6g}"
        cause = "weights or fitted steps are damaged (export the model again), or the guidance is too large (take less)"
        overflow = "" if engine.precision == "float32" else f", or {engine.precision} overflows where float32 does not"
        raise Failure(f"{engine.name}, {engine.precision}: {damaged} is not finite: {cause}{overflow}")
    return array


def rescaled(prediction: np.ndarray, cond: np.ndarray, share: float) -> np.ndarray:
    """`prediction` with its deviation in every picture brought to that of `cond`, by `share`.

    Lin et al. 2024, equations 15 and 16.
    """
    axes = tuple(range(1, prediction.ndim))
    factor = cond.std(axes, keepdims=True) / prediction.std(axes, keepdims=True)
    return prediction * (share * factor + (1 - share))


def mixed(start: Evaluate, end: Evaluate, shares: np.ndarray) -> Evaluate:
    """Predictions `shares` (B,) of the way from `start` to `end`: the scores of two conditions, interpolated."""
    share = shares.astype(np.float32)[:, None, None, None]

    def evaluate(x: np.ndarray, t: float) -> Steps:
        return (1 - share) * (yield from start(x, t)) + share * (yield from end(x, t))

    return evaluate


def with_x0(evaluate: Evaluate, schedule: Schedule, change: Callable[[np.ndarray], np.ndarray]) -> Evaluate:
    """The predictions whose clean pictures are `change` of those of `evaluate`."""

    def evaluate_changed(x: np.ndarray, t: float) -> Steps:
        return schedule.from_x0(change(schedule.to_x0((yield from evaluate(x, t)), x, t)), x, t)

    return evaluate_changed


def thresholded(x0: np.ndarray, quantile: float, limit: float) -> np.ndarray:
    """Dynamic thresholding of (B, C, H, W), whose pixels belong within -limit .. limit."""
    axes = tuple(range(1, x0.ndim))
    s = np.maximum(np.quantile(np.abs(x0), quantile, axis=axes, keepdims=True), limit).astype(np.float32)
    return np.clip(x0, -s, s) * (limit / s)


def watched(evaluate: Evaluate, schedule: Schedule, watch: Callable[[np.ndarray], object]) -> Evaluate:
    """`evaluate`, which calls `watch` with the clean pictures of every prediction, (B, C, H, W) in about -1 .. 1."""

    def evaluate_watched(x: np.ndarray, t: float) -> Steps:
        prediction = yield from evaluate(x, t)
        watch(schedule.to_x0(prediction, x, t) * schedule.data_std)
        return prediction

    return evaluate_watched
