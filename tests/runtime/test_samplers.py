"""Each sampler against the closed form of a Gaussian and against diffusers' schedulers on the same predictions and noise."""

from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.samplers import SAMPLERS, find_sampler, timesteps_for
from cfgdiff.runtime.schedule import Schedule

MEAN, STD = 0.7, 0.4


def exact(schedule: Schedule) -> Any:
    """The exact prediction for pictures distributed as N(MEAN, STD^2)."""

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        return eps if schedule.prediction == "eps" else alpha * eps - sigma * x0

    return predict


def ode_error(name: str, steps: int, prediction: str) -> float:
    """Largest distance to the exact solution of the probability-flow ODE, from t = 900."""
    schedule, rng = Schedule(prediction=prediction), np.random.default_rng(0)
    start = 900.0
    alpha, sigma = float(schedule.alpha(start)), float(schedule.sigma(start))
    x = alpha * MEAN + (alpha**2 * STD**2 + sigma**2) ** 0.5 * rng.standard_normal((4, 1, 8, 8))
    solution = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5
    levels = np.geomspace(float(schedule.ratio(start)), 1e-4, steps)
    found = SAMPLERS[name](exact(schedule), x, np.append(schedule.t_of_ratio(levels), 0), schedule, lambda step: x)
    return float(np.abs(found - solution).max())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp-2m", 2)])
def test_the_ode_samplers_converge_at_their_order(name: str, order: int, prediction: str) -> None:
    coarse, fine = ode_error(name, 60, prediction), ode_error(name, 240, prediction)
    assert fine < coarse and np.log(coarse / fine) / np.log(4) == pytest.approx(order, abs=0.3)


def test_ddpm_draws_from_the_distribution() -> None:
    schedule, indices = Schedule(prediction="eps"), np.arange(500)
    x = normals(5, indices, 0, (1, 4, 4))
    found = SAMPLERS["ddpm"](exact(schedule), x, timesteps_for("ddpm", 1000, schedule), schedule,
                             lambda step: normals(5, indices, step, (1, 4, 4))).astype(np.float64)  # fmt: skip
    assert found.mean() == pytest.approx(MEAN, abs=5 * STD / found.size**0.5)
    assert found.std() == pytest.approx(STD, rel=0.03)


def test_timesteps_are_the_papers_and_karras() -> None:
    schedule = Schedule()
    np.testing.assert_array_equal(timesteps_for("ddpm", 1000, schedule), np.arange(1000, -1, -1.0))
    levels = schedule.ratio(timesteps_for("dpmpp-2m", 12, schedule)[:-1])
    expected = [(160 ** (1 / 7) + i / 11 * (0.004 ** (1 / 7) - 160 ** (1 / 7))) ** 7 for i in range(12)]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    assert len(timesteps_for("dpmpp-2m", 1, schedule)) == 2


def test_an_unknown_sampler_lists_the_choices() -> None:
    with pytest.raises(BadInput, match=r"ddpm, ddim, dpmpp-2m; did you mean 'ddim'"):
        find_sampler("dimm")


PEERS = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "lower_order_final": False, "final_sigmas_type": "zero"}),
}


@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize("name", list(PEERS))
def test_agrees_with_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    steps, schedule, indices = 50, Schedule(prediction="v"), np.arange(4)
    latent = normals(3, indices, 0, (3, 8, 8))

    def answer(x: np.ndarray, t: float) -> np.ndarray:  # any smooth function of x and t will do
        return np.sin(2 * x + t / 300).astype(np.float32)

    ours = SAMPLERS[name](answer, latent, np.linspace(1000, 0, steps + 1), schedule, lambda step: normals(3, indices, step, (3, 8, 8)))

    kind, settings = PEERS[name]
    peer = getattr(diffusers, kind)(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", **settings
    )
    peer.set_timesteps(steps)
    drawn = iter(range(1, steps + 1))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor",
                        lambda shape, **_: torch.from_numpy(normals(3, indices, next(drawn), (3, 8, 8))))  # fmt: skip
    x = torch.from_numpy(latent).double()
    for i in peer.timesteps:
        prediction = torch.from_numpy(answer(x.numpy(), float(i) + 1)).double()
        x = peer.step(prediction, i, x).prev_sample.double()
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-4)
