"""What a sampler asks the network for. Each function returns a `Predict`; those that take one wrap it, and generate.py stacks them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .engine import Engine
from .errors import BadInput, Failure
from .samplers import Predict
from .schedule import Schedule

LARGEST = float(np.finfo(np.float32).max)  # w is float32 in the graph


@dataclass(frozen=True)
class Guidance:
    """How the network's answers are guided (Ho & Salimans 2022), for one picture or for each of N.

    Attributes:
        weights: w in uncond + w (cond - uncond), 1 or N of them; 1 is plain conditional.
        interval: of sigma / alpha, where w acts; elsewhere the answer is conditional (Kynkaanniemi et al. 2024). None: everywhere.
        rescale: phi, 0 .. 1, how much of the answer's deviation is brought back to the conditional one's (Lin et al. 2024, equation 16).
        threshold: dynamic thresholding's p, 0 < p <= 1 (Saharia et al. 2022, section 2.3): x0 is clipped at the p quantile of |x0| and
            divided by it where that exceeds 1. None: x0 as it is.

    Raises:
        BadInput: naming the flag.
    """

    weights: tuple[float, ...]
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.weights or not np.isfinite(self.weights).all():
            found = ", ".join(dict.fromkeys(map(str, self.weights))) or "none"
            raise BadInput(f"--guidance: expected finite numbers, found {found}; 1 is plain conditional")
        if (most := max(map(abs, self.weights))) > LARGEST:
            raise BadInput(f"--guidance: expected at most {LARGEST:.3g}, as float32 holds it, found {most:g}; 1 is plain conditional")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise BadInput(f"--guidance-interval: expected 0 <= LO < HI, found {self.interval[0]},{self.interval[1]}; as in 0.3,5")
        if not 0 <= self.rescale <= 1:
            raise BadInput(f"--guidance-rescale: expected 0 .. 1, found {self.rescale}; 0 leaves guidance as it is")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise BadInput(f"--threshold: expected a share of the pixels in (0, 1], found {self.threshold}; 0.995 is usual")

    def weights_of(self, indices: np.ndarray) -> np.ndarray:
        """w of these pictures, (B,) float32."""
        return np.array(self.weights, np.float32)[indices % len(self.weights)]


def guided(engine: Engine, schedule: Schedule, labels: np.ndarray, null_class: int, weights: np.ndarray, guidance: Guidance) -> Predict:
    """Guided answers for a batch of `labels` (B,) with `weights` (B,): B rows of the network, and one more for each that is guided.

    It raises `Failure` for an answer that is not finite, which would be a black picture.
    """

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        x, times = x.astype(np.float32, copy=False), np.full(len(x), t, np.float32)
        lo, hi = guidance.interval or (0.0, np.inf)
        acts = (weights != 1) & (lo <= float(schedule.ratio(t)) <= hi)
        if guidance.rescale and acts.any():
            both = np.concatenate([x, x]), np.concatenate([times, times]), np.concatenate([labels, np.full_like(labels, null_class)])
            cond, uncond = np.split(engine.predict(*both, np.zeros(0, np.float32)), 2)
            w = np.where(acts, weights, np.float32(1))[:, None, None, None]
            return finite(rescaled(uncond + w * (cond - uncond), cond, guidance.rescale), engine, t)
        order = np.argsort(~acts, kind="stable")  # the graph guides the first G rows
        answer = engine.predict(x[order], times, labels[order], weights[order][: acts.sum()])
        return finite(answer, engine, t)[np.argsort(order)]

    return predict


def finite(array: np.ndarray, engine: Engine, t: float) -> np.ndarray:
    """`array`, the network's answer at t or, at t = 0, pictures. Raises `Failure`, naming the evaluation, where it is not finite."""
    if not np.isfinite(array).all():
        what = "the finished picture" if t == 0 else f"the network's answer at t = {t:.6g}"
        why = "weights or fitted steps are damaged (export the model again), or the guidance is too large (take less)"
        less = "" if engine.precision == "float32" else f", or {engine.precision} does not reach as far as float32"
        raise Failure(f"{engine.name}, {engine.precision}: {what} is not finite: {why}{less}")
    return array


def rescaled(answer: np.ndarray, cond: np.ndarray, share: float) -> np.ndarray:
    """`answer` with its deviation in every picture brought to that of `cond`, by `share` (Lin et al. 2024, equations 15 and 16)."""
    axes = tuple(range(1, answer.ndim))
    factor = cond.std(axes, keepdims=True) / answer.std(axes, keepdims=True)
    return answer * (share * factor + (1 - share))


def mixed(one: Predict, other: Predict, shares: np.ndarray) -> Predict:
    """Answers that are `shares` (B,) of the way from `one` to `other`: the scores of two conditions, interpolated."""
    share = shares.astype(np.float32)[:, None, None, None]
    return lambda x, t: (1 - share) * one(x, t) + share * other(x, t)


def with_x0(predict: Predict, schedule: Schedule, change: Callable[[np.ndarray], np.ndarray]) -> Predict:
    """The answers whose clean pictures are `change` of those of `predict`."""

    def predict_changed(x: np.ndarray, t: float) -> np.ndarray:
        return schedule.from_x0(change(schedule.to_x0(predict(x, t), x, t)), x, t)

    return predict_changed


def thresholded(x0: np.ndarray, quantile: float, limit: float) -> np.ndarray:
    """Dynamic thresholding of (B, C, H, W), whose pixels belong within -limit .. limit."""
    axes = tuple(range(1, x0.ndim))
    s = np.maximum(np.quantile(np.abs(x0), quantile, axis=axes, keepdims=True), limit).astype(np.float32)
    return np.clip(x0, -s, s) * (limit / s)


def watched(predict: Predict, schedule: Schedule, watch: Callable[[np.ndarray], object]) -> Predict:
    """`predict`, with `watch` told the clean picture (B, C, H, W) of every answer."""

    def predict_watched(x: np.ndarray, t: float) -> np.ndarray:
        answer = predict(x, t)
        watch(schedule.to_x0(answer, x, t))
        return answer

    return predict_watched
