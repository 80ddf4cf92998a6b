"""Fitted steps on a model whose answers are known in closed form, and their pieces against brute force."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from cfgdiff.export.fit import choose, fit_steps, squared_error, step_costs, total_evaluations
from cfgdiff.runtime import Bundle, generate
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.samplers import SAMPLERS, run
from cfgdiff.runtime.spacing import timesteps_for

SCALES = np.geomspace(0.05, 1, 4)[:, None, None]


class Gaussians:
    """The exact network for pictures whose channels are independent normals of these scales, around 0.3; w acts on the
    mean."""

    name, precision, max_batch = "exact", "float32", 64

    def __init__(self, bundle: Bundle) -> None:
        self.schedule = bundle.schedule

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        t, mean = float(timestep[0]), 0.3
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        gain = alpha * SCALES**2 / (alpha**2 * SCALES**2 + sigma**2)
        x0 = mean + gain * (sample - alpha * mean)
        return self.schedule.from_x0(x0, sample, t).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def bundle(packaged: Bundle) -> Bundle:
    return dataclasses.replace(
        packaged, image_shape=(4, 6, 6), defaults=Defaults("dpmpp-2m", 20, 2.0, (0.01, 100.0)), fitted={}
    )


def exact(bundle: Bundle, x: np.ndarray, t: float) -> np.ndarray:
    """Where the probability-flow ODE leads from x at t: in a Gaussian, every channel is scaled by the ratio of its
    deviations."""
    alpha, sigma = float(bundle.schedule.alpha(t)), float(bundle.schedule.sigma(t))
    return 0.3 + (x - alpha * 0.3) * SCALES / np.sqrt(alpha**2 * SCALES**2 + sigma**2)


def test_few_fitted_evaluations_come_closer_to_the_exact_end_than_the_solver_does(bundle: Bundle) -> None:
    engine, told = Gaussians(bundle), list[int]()
    found = fit_steps(engine, bundle, [4, 6], pictures=24, held_out=8, teacher_evaluations=80, watch=told.append)
    assert sum(told) == total_evaluations([4, 6], 24, 8, 80)
    x = normals(77, np.arange(16), 0, bundle.image_shape)  # other pictures than those fitted to
    for n, one in found.items():
        fitted = one.fitted
        assert len(fitted.timesteps) == n + 1 and fitted.guidance == 2.0 and np.all(np.diff(fitted.timesteps) < 0)
        plain_times, errors = timesteps_for("dpmpp-2m", n, bundle.schedule), []
        for sampler, times in (
            (fitted.sampler(), np.array(fitted.timesteps)),
            (SAMPLERS["dpmpp-2m"].solve, plain_times),
        ):
            drawn = run(
                sampler(x, times, bundle.schedule, lambda s: x),
                lambda x, t: engine.predict(x, np.full(len(x), t), np.zeros(0), np.zeros(0)),
            )
            errors.append(np.square(drawn - exact(bundle, x, float(times[0]))).mean())
        assert errors[0] < errors[1] / 5, (n, errors)
        assert one.error < one.plain_error / 5
    assert found[6].error < found[4].error


def test_pictures_of_the_bundle_are_then_drawn_by_them(bundle: Bundle) -> None:
    engine = Gaussians(bundle)
    found = fit_steps(engine, bundle, [3], pictures=8, held_out=8, teacher_evaluations=20)
    fitted = dataclasses.replace(bundle, fitted={3: found[3].fitted})
    ((_, by_default),) = generate(engine, fitted, ["cat"], steps=3)
    ((_, by_name),) = generate(engine, fitted, ["cat"], steps=3, sampler="fitted")
    ((_, plain),) = generate(engine, bundle, ["cat"], steps=3)
    np.testing.assert_array_equal(by_default, by_name)
    assert (by_default != plain).any() and found[3].fitted.interval == bundle.defaults.interval


def test_the_chosen_path_is_the_cheapest_of_all() -> None:
    rng = np.random.default_rng(0)
    states, cleans = (
        rng.standard_normal((8, 2, 3, 2, 2)).astype(np.float32),
        rng.standard_normal((7, 2, 3, 2, 2)).astype(np.float32),
    )
    cost, found = step_costs(states, cleans), choose(states, cleans, [1, 3, 4])
    for n, path in found.items():
        assert len(path) == n and path[0] == 0

        def total(inner: tuple[int, ...]) -> float:
            whole = [0, 0, *inner, 7]
            return sum(cost[whole[i], whole[i + 1], whole[i + 2]] for i in range(len(whole) - 2))

        assert total(tuple(path[1:])) == pytest.approx(min(total(inner) for inner in combinations(range(1, 7), n - 1)))


def test_a_step_costs_what_lies_outside_its_span() -> None:
    rng = np.random.default_rng(1)
    states, cleans = (
        rng.standard_normal((4, 1, 3, 2, 2)).astype(np.float32),
        rng.standard_normal((3, 1, 3, 2, 2)).astype(np.float32),
    )
    cost = step_costs(states, cleans)
    for k, i, j in ((0, 0, 2), (0, 1, 3), (1, 2, 3)):
        basis = np.stack([states[i].ravel(), cleans[i].ravel(), *([cleans[k].ravel()] if k < i else [])], 1).astype(
            float
        )
        _, residual, *_ = np.linalg.lstsq(basis, states[j].ravel().astype(float), rcond=None)
        assert cost[k, i, j] == pytest.approx(residual[0] / 12, rel=1e-4)
    assert np.isinf(cost[0, 2, 1]) and np.isinf(cost[2, 1, 3])


def test_the_error_is_of_pixels_from_minus_one_to_one() -> None:
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    assert squared_error(black, black) == 0
    assert squared_error(black, white) == squared_error(white, black) == 4
    white[0] = 0
    assert squared_error(black, white) == 2
    assert squared_error(np.float32([0.5, -1]), np.float32([0.5, 1])) == 2


def test_the_error_that_is_reported_is_of_pixels_too(bundle: Bundle) -> None:
    errors = []
    for data_std in (0.5, 1.0):  # what pixels were divided by before they were noised
        schedule = dataclasses.replace(bundle.schedule, data_std=data_std)
        changed = dataclasses.replace(bundle, schedule=schedule)
        found = fit_steps(Gaussians(changed), changed, [3], pictures=8, held_out=8, teacher_evaluations=20)[3]
        errors.append((found.error, found.plain_error))
    assert errors[1] == pytest.approx([4 * error for error in errors[0]])
