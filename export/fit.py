"""Timesteps and coefficients for few evaluations, fitted to one model on trajectories that many evaluations draw.

The choice of timesteps is that of a shortest path, as in GITS (Chen et al. 2024), but the length of a step is how much of the
teacher's state a linear multistep solver cannot reach at all, so that the coefficients are fitted (as in S4S, Frankel et al. 2025)
and not those of one solver. No gradients: everything is least squares over inner products.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.fitted import TERMS, Fitted, terms
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.samplers import SAMPLERS
from cfgdiff.runtime.spacing import timesteps_for

RIDGE = 1e-7  # of the largest inner product: x and x0 are nearly the same at little noise


@dataclass(frozen=True)
class Teacher:
    """Trajectories of n pictures over G evaluations.

    Attributes:
        timesteps: (G + 1,), the last one 0.
        states: x at each of them, the last being the picture, (G + 1, n, C, H, W) float32.
        cleans: what the network made of each state but the last, (G, n, C, H, W) float32.
    """

    timesteps: np.ndarray
    states: np.ndarray
    cleans: np.ndarray


def predictor(
    engine: Engine, bundle: Bundle, labels: np.ndarray, guidance: float, batch: int = 32
) -> Callable[[np.ndarray, float], np.ndarray]:
    """`(x, t) -> prediction` for pictures of these classes, guided."""

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        parts = []
        for lo in range(0, len(x), batch):
            part = x[lo : lo + batch]
            times, w = np.full(len(part), t, np.float32), np.full(len(part), guidance, np.float32)
            parts.append(engine.predict(part.astype(np.float32), times, labels[lo : lo + batch], w))
        return np.concatenate(parts)

    return predict


def teach(
    engine: Engine, bundle: Bundle, labels: np.ndarray, guidance: float, evaluations: int, seed: int, watch: Callable[[int], object]
) -> Teacher:
    """Draw pictures by dpmpp-2m with many evaluations and keep what it saw."""
    schedule = bundle.schedule
    timesteps = timesteps_for("dpmpp-2m", evaluations, schedule)
    states, cleans, predict = list[np.ndarray](), list[np.ndarray](), predictor(engine, bundle, labels, guidance)

    def recorded(x: np.ndarray, t: float) -> np.ndarray:
        answer = predict(x, t)
        states.append(x.astype(np.float32))
        cleans.append(schedule.to_x0(answer, x, t).astype(np.float32))
        watch(len(x))
        return answer

    latent = normals(seed, np.arange(len(labels)), 0, bundle.image_shape)
    states.append(SAMPLERS["dpmpp-2m"](recorded, latent, timesteps, schedule, lambda step: latent))
    return Teacher(timesteps, np.stack(states), np.stack(cleans))


def choose(teacher: Teacher, evaluations: list[int]) -> dict[int, list[int]]:
    """For each number of evaluations, the positions on the teacher's path to evaluate at, the first one always among them.

    Dynamic programming over the last two positions; a step k -> i -> j costs what of the state at j is outside the span of the state
    at i, its x0 and the x0 before. Errors are not weighted: of a unit-variance picture, an error of x_t is one of x0.
    """
    g = len(teacher.cleans)
    cost = step_costs(teacher)  # (k, i, j); k = i stands for no step before
    best, path = np.full((g, g + 1), np.inf), dict[tuple[int, int, int], int]()
    best[0, 1:] = cost[0, 0, 1:]  # after one step: from 0 to j
    found = {}
    for n in range(1, max(evaluations) + 1):
        if n in evaluations:
            found[n] = _trace(path, n, int(np.argmin(best[:, g])), g)
        through = best[:, :g, None] + cost[:, :, :]  # (k, i, j): k was before i
        through[np.arange(g), np.arange(g)] = np.inf
        before = np.argmin(through, axis=0)  # (i, j)
        for i in range(g):
            for j in range(i + 1, g + 1):
                path[n + 1, i, j] = int(before[i, j])
        best = np.take_along_axis(through, before[None], axis=0)[0]
    return found


def _trace(path: dict[tuple[int, int, int], int], n: int, i: int, j: int) -> list[int]:
    positions = [i]
    for step in range(n, 1, -1):
        i, j = path[step, i, j], i
        positions.append(i)
    return positions[::-1]


def step_costs(teacher: Teacher) -> np.ndarray:
    """Mean square of what a step k -> i -> j cannot reach, (G, G, G + 1); inf where not k <= i < j. k = i: without x0 of k."""
    g, size = len(teacher.cleans), teacher.states[0].size
    every = np.concatenate([teacher.states, teacher.cleans]).reshape(2 * g + 1, -1).astype(np.float32)
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


def fit(engine: Engine, bundle: Bundle, teacher: Teacher, labels: np.ndarray, guidance: float, positions: list[int],
        watch: Callable[[int], object]) -> Fitted:  # fmt: skip
    """Coefficients for a path, one step after the other on the student's own trajectory: each leads to the teacher's next state."""
    schedule, predict = bundle.schedule, predictor(engine, bundle, labels, guidance)
    x, said, rows = teacher.states[0], list[np.ndarray](), list[tuple[float, ...]]()
    times = [float(teacher.timesteps[i]) for i in positions]
    for t, target in zip(times, [*positions[1:], len(teacher.cleans)], strict=True):
        said = [schedule.to_x0(predict(x, t), x, t).astype(np.float32), *said[:2]]
        watch(len(x))
        parts = terms(x, said)
        flat = np.stack([part.ravel() for part in parts])
        inside = (flat @ flat.T).astype(np.float64)
        row = solve(inside, (flat @ teacher.states[target].ravel()).astype(np.float64))
        rows.append(tuple(float(c) for c in row) + (0.0,) * (TERMS - len(row)))
        x = sum(float(c) * part for c, part in zip(row, parts, strict=True))
    return Fitted((*times, 0.0), tuple(rows), guidance)
