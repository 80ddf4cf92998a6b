"""The recipe in the metadata and the card: followed to the letter, it draws what the package draws."""

from itertools import pairwise

import numpy as np
import pytest

from cfgdiff.export.recipe import inputs, recipe
from cfgdiff.runtime import Bundle, Engine, generate, load_bundle, open_engine
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.schedule import KINDS, PREDICTIONS, Schedule

T = 200


def cosine(line: str, t: float) -> float:
    """What the recipe's first line says alpha_bar is, computed as it stands there."""
    formula, rest = line.split("alpha_bar(t) = ")[1].split(", f(t) = ")
    term = rest.split("; ")[0].replace("^", "**")

    def f(t: float) -> float:
        return float(eval(term, {"t": t, "T": T, "cos": np.cos, "pi": np.pi}))

    return float(eval(formula, {"t": t, "T": T, "f": f, "max": max}))


def linear(line: str, t: float) -> float:
    """The same for the other schedule, which is said in words."""
    assert "beta_i = 1e-4 .. 0.02 in T even steps, times 1000 / T, at most 0.999" in line
    return float(np.exp(np.log(1 - np.minimum(np.linspace(1e-4, 0.02, T) * 1000 / T, 0.999)[: int(t)]).sum()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_its_formulas_are_the_schedules(kind: str, prediction: str) -> None:
    schedule, rng = Schedule(kind, T, prediction), np.random.default_rng(0)
    first, *_, step, _ = recipe(schedule, 6, 1.5)
    x, answer = rng.standard_normal((2, 1, 3, 4, 4))
    x0, eps = step.split("at t_i: x0 = ")[1].split(". Then")[0].split(", eps = ")
    for t in (1, 60, 199, 200):
        alpha_bar = (cosine if kind == "cosine" else linear)(first, t)
        assert alpha_bar == pytest.approx(float(schedule.alpha_bar(t)), rel=1e-9)
        names = {"alpha": np.sqrt(alpha_bar), "sigma": np.sqrt(1 - alpha_bar), "x": x, "P": answer}
        np.testing.assert_allclose(eval(x0, names), schedule.to_x0(answer, x, t))
        np.testing.assert_allclose(eval(eps, names), schedule.to_eps(answer, x, t))


def test_it_draws_what_the_package_draws(packaged: Bundle, engine: Engine) -> None:
    n, schedule, labels = 4, packaged.schedule, np.array([6, 8])
    assert "0 <= G <= B" in inputs(10, 1000)["guidance"] and "10 is the null class" in inputs(10, 1000)["class_label"]
    x = normals(0, np.arange(2), 0, packaged.image_shape).astype(np.float64)
    for i in range(n):
        t, s = (schedule.T * (n - j) / n for j in (i, i + 1))
        answer = engine.predict(x.astype(np.float32), np.full(2, t, np.float32), labels, np.full(2, 1.5, np.float32))
        alpha, sigma = np.sqrt(schedule.alpha_bar(t)), np.sqrt(1 - schedule.alpha_bar(t))
        x0, eps = alpha * x - sigma * answer, sigma * x + alpha * answer
        x = np.sqrt(schedule.alpha_bar(s)) * x0 + np.sqrt(1 - schedule.alpha_bar(s)) * eps
    pictures = np.round((np.clip(x * 0.5, -1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    ((_, expected),) = generate(engine, packaged, ["frog", "ship"], n, 1.5, sampler="ddim", interval=(0.0, 1e9))
    assert np.abs(pictures - expected).max() <= 1


@pytest.mark.parametrize("n", [1, 3])
def test_a_network_of_few_steps_is_drawn_with_at_its_own_timesteps(n: int) -> None:
    turbo = load_bundle("cifar10-turbo")
    lines = recipe(turbo.schedule, n, 3.0, turbo.fitted[n].timesteps)
    timesteps = [float(t) for t in lines[1].split("t_i = ")[1].split(" for i")[0].split(", ")]
    assert "guided by w, 1 .. 8" in inputs(10, 1000, turbo.guidance_input)["guidance"]
    x, labels = normals(0, np.arange(2), 0, turbo.image_shape).astype(np.float64), np.array([6, 8])
    with open_engine(turbo, "cpu", "float32") as opened:
        for t, s in pairwise(timesteps):
            answer = opened.predict(x.astype(np.float32), np.full(2, t, np.float32), labels, np.full(2, 3, np.float32))
            alpha, sigma = np.sqrt(turbo.schedule.alpha_bar(t)), np.sqrt(1 - turbo.schedule.alpha_bar(t))
            x0, eps = alpha * x - sigma * answer, sigma * x + alpha * answer
            x = np.sqrt(turbo.schedule.alpha_bar(s)) * x0 + np.sqrt(1 - turbo.schedule.alpha_bar(s)) * eps
        ((_, expected),) = generate(opened, turbo, ["frog", "ship"], n, 3.0)
    pictures = np.round((np.clip(x * 0.5, -1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    assert np.abs(pictures - expected.astype(int)).max() <= 1
