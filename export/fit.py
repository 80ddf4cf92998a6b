"""Timesteps and coefficients for few evaluations, fitted to one model on trajectories that many evaluations draw.

The choice of timesteps is that of a shortest path, as in GITS (Chen et al. 2024), but the length of a step is how much
of the teacher's state a linear multistep solver cannot reach at all, so that the coefficients are fitted (as in S4S,
Frankel et al. 2025) and not those of one solver. No gradients: everything is least squares over inner products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.fitted import TERMS, Fitted, terms
from cfgdiff.runtime.generate import conditioned
from cfgdiff.runtime.guidance import Guidance, guided
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.samplers import SAMPLERS, Predict, run
from cfgdiff.runtime.spacing import timesteps_for

BATCH, HELD_OUT = 32, 32
SEED = 2**63  # of the latents: not a usual choice, so that nobody judges the result by the pictures it was fitted to
RIDGE = 1e-7  # of the largest inner product: x and x0 are nearly the same at little noise


@dataclass(frozen=True)
class Teacher:
    """Trajectories of n pictures over G evaluations.

    Attributes:
        timesteps: (G + 1,), the last one 0.
        states: x at each of them, the last being the picture, (G + 1, n, C, H, W) float32.
        cleans: the network's x0 at each state but the last, (G, n, C, H, W) float32.
    """

    timesteps: np.ndarray
    states: np.ndarray
    cleans: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Fitted steps, and their error to the teacher on held-out pictures (`squared_error`) beside that of dpmpp-2m."""

    fitted: Fitted
    error: float
    plain_error: float


def squared_error(pictures: np.ndarray, teacher: np.ndarray) -> float:
    """The error to a teacher: mean squared difference to its pictures, pixels in -1 .. 1, to which uint8 is mapped."""
    scale = 127.5 if teacher.dtype == np.uint8 else 1.0
    return float(np.square((pictures.astype(np.float64) - teacher) / scale).mean())


def fit_steps(engine: Engine, bundle: Bundle, evaluations: list[int], pictures: int = 128, held_out: int = HELD_OUT,
              teacher_evaluations: int = 60, guidance: Guidance | None = None,
              watch: Callable[[int], object] = lambda n: None, low: np.ndarray | None = None,
              ) -> dict[int, Fit]:  # fmt: skip
    """Fit timesteps and coefficients for each number of evaluations.

    Args:
        pictures: to fit to, of all classes in turn.
        held_out: other pictures, to measure the result on.
        teacher_evaluations: of the dpmpp-2m trajectories to fit to; more than any of `evaluations`.
        guidance: one w and its interval, the only ones that the result is valid for; the bundle's defaults where None.
        watch: receives the number of pictures of every evaluation, `total_evaluations` in all.
        low: what a super-resolution stage enlarges, (pictures + held_out, h, w, C) uint8.
    """
    schedule, labels = bundle.schedule, np.arange(pictures + held_out) % len(bundle.class_names)
    guidance = guidance or Guidance((bundle.defaults.guidance,), bundle.defaults.interval)
    condition = () if low is None else conditioned(bundle, low, partial(_noise, len(low)))
    predict = predictor(engine, bundle, labels, guidance, watch, condition)
    teacher, known = teach(predict, bundle, teacher_evaluations, len(labels)), slice(0, pictures)
    paths, fits = choose(teacher.states[:, known], teacher.cleans[:, known], evaluations), {}
    for n in evaluations:
        fitted, x = fit(predict, bundle, teacher, guidance, paths[n], known)
        steps = SAMPLERS["dpmpp-2m"].solve(
            teacher.states[0], timesteps_for("dpmpp-2m", n, schedule), schedule, _no_noise
        )
        drawn = run(steps, predict)
        errors = (
            squared_error(*(s * schedule.data_std for s in (x0[pictures:], teacher.states[-1][pictures:])))
            for x0 in (x, drawn)
        )
        fits[n] = Fit(fitted, *errors)
    return fits


def total_evaluations(
    evaluations: list[int], pictures: int = 128, held_out: int = HELD_OUT, teacher_evaluations: int = 60
) -> int:
    """How many pictures `fit_steps` evaluates."""
    return (pictures + held_out) * (teacher_evaluations + 2 * sum(evaluations))


def predictor(
    engine: Engine, bundle: Bundle, labels: np.ndarray, guidance: Guidance, watch: Callable[[int], object],
    condition: tuple[np.ndarray, ...] = (),
) -> Predict:  # fmt: skip
    """Guided predictions for any number of pictures, `BATCH` at a time; `condition` is that of all of them."""
    parts, weights = (
        [slice(lo, lo + BATCH) for lo in range(0, len(labels), BATCH)],
        guidance.weights_of(np.arange(len(labels))),
    )
    evaluations = [
        guided(
            engine, bundle.schedule, labels[part], len(bundle.class_names), weights[part], guidance,
            tuple(array[part] for array in condition),
        )
        for part in parts
    ]  # fmt: skip

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        answers = []
        for part, evaluate in zip(parts, evaluations, strict=True):
            answers.append(run(evaluate(x[part], t), engine.predict))
            watch(len(answers[-1]))
        return np.concatenate(answers)

    return predict


def teach(predict: Predict, bundle: Bundle, evaluations: int, n: int) -> Teacher:
    """Draw n pictures by dpmpp-2m with many evaluations, and keep its states."""
    schedule = bundle.schedule
    timesteps, states, cleans = timesteps_for("dpmpp-2m", evaluations, schedule), list[np.ndarray](), list[np.ndarray]()

    def recorded(x: np.ndarray, t: float) -> np.ndarray:
        answer = predict(x, t)
        states.append(x.astype(np.float32))
        cleans.append(schedule.to_x0(answer, x, t).astype(np.float32))
        return answer

    latent = normals(SEED, np.arange(n), 0, bundle.image_shape)
    states.append(run(SAMPLERS["dpmpp-2m"].solve(latent, timesteps, schedule, _no_noise), recorded))
    return Teacher(timesteps, np.stack(states), np.stack(cleans))


def _noise(n: int, shape: tuple[int, ...], step: int) -> np.ndarray:
    return normals(SEED, np.arange(n), step, shape, stage=1)


def _no_noise(step: int) -> np.ndarray:
    raise AssertionError("a sampler of the probability-flow ODE draws no noise")


def choose(states: np.ndarray, cleans: np.ndarray, evaluations: list[int]) -> dict[int, list[int]]:
    """For each number of evaluations, the positions on the teacher's path to evaluate at, beginning with the first.

    Dynamic programming over the last two positions; a step k -> i -> j costs what of the state at j is outside the span
    of the state at i, its x0 and the x0 before. Errors are not weighted: of a unit-variance picture, an error of x_t is
    one of x0.
    """
    g = len(cleans)
    cost = step_costs(states, cleans)  # (k, i, j); k = i stands for no step before
    best, path = np.full((g, g + 1), np.inf), dict[tuple[int, int, int], int]()
    best[0, 1:] = cost[0, 0, 1:]  # after one step: from 0 to j
    chosen = {}
    for n in range(1, max(evaluations) + 1):
        if n in evaluations:
            chosen[n] = _trace(path, n, int(np.argmin(best[:, g])), g)
        through = best[:, :g, None] + cost[:, :, :]  # (k, i, j): k was before i
        through[np.arange(g), np.arange(g)] = np.inf
        before = np.argmin(through, axis=0)  # (i, j)
        for i in range(g):
            for j in range(i + 1, g + 1):
                path[n + 1, i, j] = int(before[i, j])
        best = np.take_along_axis(through, before[None], axis=0)[0]
    return chosen


def _trace(path: dict[tuple[int, int, int], int], n: int, i: int, j: int) -> list[int]:
    positions = [i]
    for step in range(n, 1, -1):
        i, j = path[step, i, j], i
        positions.append(i)
    return positions[::-1]


def step_costs(states: np.ndarray, cleans: np.ndarray) -> np.ndarray:
    """Mean square that a step k -> i -> j cannot reach, (G, G, G + 1); inf unless k <= i < j. k = i: no step before."""
    g, size = len(cleans), states[0].size
    every = np.concatenate([states, cleans]).reshape(2 * g + 1, -1)
    gram = (every @ every.T).astype(np.float64) / size  # inner products of all states and x0s
    cost = np.full((g, g, g + 1), np.inf)
    for i in range(g):
        for k in range(i + 1):
            basis = [i, g + 1 + i] if k == i else [i, g + 1 + i, g + 1 + k]
            inside, targets = gram[basis][:, basis], np.arange(i + 1, g + 1)
            right = gram[basis][:, targets]
            weights = solve(inside, right)
            cost[k, i, targets] = np.maximum(
                gram[targets, targets] - 2 * (weights * right).sum(0) + (weights * (inside @ weights)).sum(0), 0
            )
    return cost


def solve(inside: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares from inner products, with a little ridge."""
    return np.linalg.solve(inside + RIDGE * np.trace(inside) * np.eye(len(inside)), right)


def fit(predict: Predict, bundle: Bundle, teacher: Teacher, guidance: Guidance, positions: list[int],
        known: slice) -> tuple[Fitted, np.ndarray]:  # fmt: skip
    """Coefficients for a path, fitted step by step on the student's trajectory to the teacher's next state.

    Only the pictures `known` are fitted to; what all become is the second answer, (n, C, H, W).
    """
    x, said, rows = teacher.states[0], list[np.ndarray](), list[tuple[float, ...]]()
    times = [float(teacher.timesteps[i]) for i in positions]
    for t, target in zip(times, [*positions[1:], len(teacher.cleans)], strict=True):
        said = [bundle.schedule.to_x0(predict(x, t), x, t).astype(np.float32), *said[:2]]
        parts = terms(x, said)
        flat = np.stack([part[known].ravel() for part in parts])
        inside = (flat @ flat.T).astype(np.float64)
        row = solve(inside, (flat @ teacher.states[target][known].ravel()).astype(np.float64))
        rows.append(tuple(float(c) for c in row) + (0.0,) * (TERMS - len(row)))
        x = np.asarray(sum(float(c) * part for c, part in zip(row, parts, strict=True)))
    return Fitted((*times, 0.0), tuple(rows), guidance.weights[0], guidance.interval), x
