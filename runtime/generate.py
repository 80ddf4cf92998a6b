"""The guided sampling loop over batches: a request in, uint8 pictures out. It knows no files and no flags."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .bundle import Model
from .cascade import stage_engines
from .engine import Engine
from .guidance import Evaluate, finite, guided, mixed, thresholded, watched, with_x0
from .noise import CONDITION, normals
from .plan import Plan, resolve
from .request import Classes, Request, Seed
from .samplers import Steps, nested, run
from .upscale import condition

Watch = Callable[[int, np.ndarray], object]


def generate(
    engine: Engine, bundle: Model, classes: Classes, steps: int | None = None,
    guidance: float | Sequence[float] | np.ndarray | None = None, seed: Seed = 0, sampler: str | None = None, *,
    watch: Watch | None = None, **settings: Any,
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Generate one picture for each entry of `classes`: the short form of `Request`, `resolve` and `sample`.

    Args:
        classes, steps, guidance, seed, sampler, settings: the fields of `Request`.
        watch: see `sample`.

    Yields:
        (first, pictures): those of classes[first:], (B, H, W, C) uint8, in order.

    Raises:
        BadInput: at the call, before any work, naming the parameter.
        Failure: while drawing, see `sample`.

    Example:
        >>> from cfgdiff.runtime import generate, load_bundle, open_engine
        >>> bundle = load_bundle()
        >>> with open_engine(bundle, "cpu") as engine:
        ...     for first, pictures in generate(engine, bundle, ["frog", "ship", "cat"], steps=4, batch=2):
        ...         print(first, pictures.shape, pictures.dtype)
        0 (2, 32, 32, 3) uint8
        2 (1, 32, 32, 3) uint8
    """
    return sample(engine, resolve(bundle, Request(classes, steps, guidance, seed, sampler, **settings)), watch)


def sample(engine: Engine, plan: Plan, watch: Watch | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Draw the pictures of a plan, batch by batch. The iterator can be closed at any time.

    In a cascade, each network draws all pictures of a batch before the next one enlarges them.

    Args:
        watch: called after every evaluation with (first, x0), the clean pictures as they look by then: (B, C, H, W),
            within about -1 .. 1.

    Yields:
        (first, pictures): from that position of the plan on, (B, H, W, C) uint8, in order.

    Raises:
        Failure: a prediction or a picture is not finite; it names the evaluation.
    """
    batch, engines = plan.batch(engine.max_batch), stage_engines(engine, plan.stages)
    for first in range(0, len(plan), batch):
        part = plan.take(slice(first, first + batch))
        watch_part = None if watch is None else partial(watch, first)
        pictures = _drawn(engine, part, watch_part)
        for stage_engine, stage in zip(engines, part.stages, strict=True):
            pictures = _drawn(stage_engine, replace(stage, low=pictures), watch_part)
        yield first, pictures


def _drawn(engine: Engine, plan: Plan, watch: Callable[[np.ndarray], object] | None) -> np.ndarray:
    """The pictures of one network, (B, H, W, C) uint8, in one batch."""
    with np.errstate(over="ignore", invalid="ignore"):  # `finite` names what is not
        return run(drawing(engine, plan, watch), engine.predict)


def drawing(engine: Engine, plan: Plan, watch: Callable[[np.ndarray], object] | None = None) -> Steps:
    """All pictures of a plan in one batch, as steps: who drives them calls the engine, which errors name.

    Args:
        watch: called after every evaluation with x0, see `sample`.

    Yields:
        The arguments of `Engine.predict`.

    Returns:
        (B, H, W, C) uint8.

    Raises:
        Failure: see `sample`.
    """
    schedule, timesteps, shape = plan.bundle.schedule, plan.course.timesteps, plan.bundle.image_shape
    noise = partial(normals, plan.seeds, plan.indices, shape=shape, stage=plan.bundle.stage)
    x = _latent(plan, shape)  # (B, C, H, W)
    if plan.known is not None:
        x = schedule.noised(plan.known, x, timesteps[0]).astype(np.float32)
    steps = plan.course.solve(x, timesteps, schedule, noise)
    x0 = finite((yield from nested(steps, _evaluation(engine, plan, watch))), engine, 0)
    return to_uint8(_keep(plan, x0) * schedule.data_std)


def _latent(plan: Plan, shape: tuple[int, ...], step: int = 0) -> np.ndarray:
    """Noise of all pictures of a plan, on the arc to the other end of an interpolation: (B, *shape)."""
    x = normals(plan.seeds, plan.indices, step, shape, plan.bundle.stage)
    if plan.end is None:
        return x
    return arc(x, normals(plan.end.seeds, plan.indices, step, shape, plan.bundle.stage), plan.end.shares)


def _condition(plan: Plan) -> tuple[np.ndarray, ...]:
    """The smaller pictures of a plan as a super-resolution stage takes them, (B, C, H, W), and their noise, (B,)."""
    if plan.low is None:
        return ()
    return conditioned(plan.bundle, plan.low, partial(_latent, plan), plan.request.condition_noise)


def conditioned(
    model: Model, low: np.ndarray, noise: Callable[[tuple[int, ...], int], np.ndarray], level: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The inputs `condition` (B, C, H, W) and `condition_noise` (B,) of a super-resolution stage, float32.

    Args:
        low: the smaller pictures, (B, h, w, C) uint8.
        noise: (shape of a picture, step) -> standard normals, (B, *shape).
        level: the timestep whose noise they get. None: the model's.
    """
    assert model.condition is not None
    s = model.condition.noise if level is None else level
    planes = (low.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    eps = noise(planes.shape[1:], CONDITION)
    enlarged = condition(planes, eps, s, model.schedule, model.condition.factor)
    return enlarged.astype(np.float32, copy=False), np.full(len(low), s, np.float32)


def _evaluation(engine: Engine, plan: Plan, watch: Callable[[np.ndarray], object] | None) -> Evaluate:
    """The network's predictions for all pictures of a plan, guided and changed as it says."""
    schedule, guidance, null_class = plan.bundle.schedule, plan.guidance, len(plan.bundle.class_names)
    weights, inputs = plan.weights.astype(np.float32), _condition(plan)
    evaluate = guided(engine, schedule, plan.labels, null_class, weights, guidance, inputs)
    if plan.end is not None and (plan.labels != plan.end.labels).any():
        end = guided(engine, schedule, plan.end.labels, null_class, weights, guidance, inputs)
        evaluate = mixed(evaluate, end, plan.end.shares)
    if guidance.threshold is not None:
        limit = 1 / schedule.data_std
        evaluate = with_x0(evaluate, schedule, partial(thresholded, quantile=guidance.threshold, limit=limit))
    if plan.mask is not None:
        evaluate = with_x0(evaluate, schedule, partial(_keep, plan))
    if watch is not None:
        evaluate = watched(evaluate, schedule, watch)
    return evaluate


def _keep(plan: Plan, x0: np.ndarray) -> np.ndarray:
    """`x0` with the edited picture outside of its mask."""
    return x0 if plan.known is None or plan.mask is None else np.where(plan.mask, x0, plan.known)


def arc(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of latents (B, C, H, W), which keeps their length.

    Args:
        shares: of the way from `a` to `b`, 0 .. 1, (B,).
    """
    axes, share = tuple(range(1, a.ndim)), shares.reshape(-1, *[1] * (a.ndim - 1))
    lengths = np.linalg.norm(a.reshape(len(a), -1), axis=1) * np.linalg.norm(b.reshape(len(b), -1), axis=1)
    cosine = (a * b).sum(axes, dtype=np.float64) / lengths
    angle = np.arccos(np.clip(cosine, -1, 1)).reshape(share.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_a, of_b = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    flat = np.sin(angle) < 1e-6  # the same latent twice
    return (np.where(flat, 1 - share, of_a) * a + np.where(flat, share, of_b) * b).astype(np.float32)


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8."""
    return np.rint((pictures.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
