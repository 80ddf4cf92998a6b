"""Each sampler against a Gaussian's closed form and diffusers' schedulers on the same predictions and noise."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Request, resolve, sample
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.samplers import SAMPLERS, Sampler, Steps, run, solver
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.runtime.spacing import timesteps_for

MEAN, STD = 0.7, 0.4


def exact(schedule: Schedule) -> Any:
    """The exact prediction for pictures distributed as N(MEAN, STD^2)."""

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        return eps if schedule.prediction == "eps" else alpha * eps - sigma * x0

    return predict


def ode_error(name: str, levels: np.ndarray, prediction: str) -> float:
    """Largest distance to the exact x0 after levels of sigma / alpha, from an exact start (probability-flow ODE)."""
    schedule, predict = Schedule(prediction=prediction), exact(Schedule(prediction=prediction))
    standard = np.random.default_rng(0).standard_normal((4, 1, 8, 8))
    ts = schedule.t_of_ratio(levels).tolist()
    x, last = (
        alpha * MEAN + (alpha**2 * STD**2 + 1 - alpha**2) ** 0.5 * standard
        for alpha in schedule.alpha([ts[0], ts[-1]]).tolist()
    )
    timesteps = timesteps_for(name, 2 * len(ts) - 1 if name == "heun" else len(ts), schedule, timesteps=ts)
    found = run(SAMPLERS[name].solve(x, timesteps, schedule, lambda step: x), predict)
    return float(np.abs(found - schedule.to_x0(predict(last, ts[-1]), last, ts[-1])).max())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp-2m", 2), ("dpmpp-3m", 3), ("unipc", 3), ("heun", 2)]
)
def test_the_ode_samplers_converge_at_their_order(name: str, order: int, prediction: str) -> None:
    """The first steps are of lower order; from ratio 160 on, where x0 hardly changes, that costs nothing."""
    coarse, fine = (ode_error(name, np.geomspace(160, 0.1, n), prediction) for n in (60, 240))
    assert fine < coarse and np.log(coarse / fine) / np.log(4) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ipndm_converges_at_order_four_where_the_ratio_falls_evenly(prediction: str) -> None:
    coarse, fine = (ode_error("ipndm", np.linspace(8, 0.5, n), prediction) for n in (80, 320))
    assert fine < coarse and np.log(coarse / fine) / np.log(4) == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize(
    ("name", "eta", "steps", "most"),
    [("ddpm", 0.0, 1000, 0.05), ("ddim", 1.0, 250, 0.05), ("euler-a", 0.0, 250, 0.05), ("ddim", 0.5, 250, 0.9)],
)
def test_the_noisy_samplers_draw_from_the_distribution(name: str, eta: float, steps: int, most: float) -> None:
    """And not by the ODE, whose pictures correlate with the latent at 1."""
    schedule, rng = Schedule(prediction="eps"), np.random.default_rng(5)
    x = rng.standard_normal((500, 1, 4, 4), np.float32)
    timesteps = timesteps_for(name, steps, schedule)
    found = run(
        solver(name, eta)(x, timesteps, schedule, lambda step: rng.standard_normal(x.shape, "f4")), exact(schedule)
    )
    found = found.astype(np.float64)
    assert found.mean() == pytest.approx(MEAN, abs=5 * STD / found.size**0.5)
    assert found.std() == pytest.approx(STD, rel=0.03)
    assert abs(np.corrcoef(found.ravel(), x.ravel())[0, 1]) < most


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_network_is_evaluated_once_a_step_in_float32(name: str, steps: int) -> None:
    schedule, x, seen = Schedule(), normals(0, np.arange(2), 0, (3, 4, 4)), list[float]()

    def answer(x: np.ndarray, t: float) -> np.ndarray:
        assert x.shape == (2, 3, 4, 4)
        seen.append(t)
        return np.sin(x).astype(np.float32)

    found = run(SAMPLERS[name].solve(x, timesteps_for(name, steps, schedule), schedule, lambda step: x), answer)
    assert len(seen) == steps and all(0 < s <= t <= 1000 for t, s in pairwise([*seen, seen[-1]]))
    assert found.dtype == np.float32 and found.shape == x.shape and np.isfinite(found).all()


def test_steps_of_samplers_at_other_timesteps_can_share_calls() -> None:
    """One driver answers all of them, a step of each in turn, and each ends where it does alone."""
    schedule, latents = Schedule(), normals(0, np.arange(len(SAMPLERS)), 0, (1, 2, 4, 4))

    def steps_of(i: int, name: str) -> Steps:
        timesteps = timesteps_for(name, 3 + i, schedule)
        return SAMPLERS[name].solve(latents[i], timesteps, schedule, lambda step: np.float32(0.1 * step) * latents[i])

    alone = [run(steps_of(i, name), answer) for i, name in enumerate(SAMPLERS)]
    ends, asked = (
        dict[int, np.ndarray](),
        {i: (steps := steps_of(i, name), next(steps)) for i, name in enumerate(SAMPLERS)},
    )
    while asked:
        together = np.concatenate([answer(x, t) for _, (x, t) in asked.values()])
        for row, (i, (steps, _)) in zip(together, list(asked.items()), strict=True):
            try:
                asked[i] = steps, steps.send(row[None])
            except StopIteration as end:
                ends[i] = end.value
                del asked[i]
    assert next(iter(ends)) == 0 and len(ends) == len(SAMPLERS)  # the shortest first
    for i, x0 in enumerate(alone):
        np.testing.assert_array_equal(ends[i], x0)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "unipc", "ipndm", "heun"])
def test_pictures_stay_float32_between_evaluations(name: str) -> None:
    schedule, x = Schedule(), normals(0, np.arange(2), 0, (3, 4, 4))

    def answer(x: np.ndarray, t: float) -> np.ndarray:
        assert x.dtype == np.float32
        return np.sin(x)

    run(SAMPLERS[name].solve(x, timesteps_for(name, 9, schedule), schedule, lambda step: x), answer)


def test_a_new_sampler_is_a_function_and_an_entry(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts its Euler steps from the clean picture, and evaluates at every level but the first twice."""
    seen = list[tuple[float, ...]]()

    def mine(x: Any, timesteps: np.ndarray, schedule: Schedule, noise: Any, eta: float = 0.0) -> Any:
        seen.append((*timesteps.tolist(), eta))
        for t in timesteps[:-1]:
            x = schedule.to_x0((yield x, float(t)), x, float(t))
        return x.astype(np.float32)

    class Half:
        name, precision, max_batch = "half", "float32", 8

        def predict(self, sample: np.ndarray, *others: np.ndarray) -> np.ndarray:
            return sample / 2

        def close(self) -> None: ...

    monkeypatch.setitem(SAMPLERS, "mine", Sampler(mine, "quadratic", twice=True, takes_eta=True))
    plan = resolve(packaged, Request(["cat"], 3, 1.0, sampler="Mine", eta=0.5))
    assert (plan.course.sampler, plan.course.spacing, plan.steps) == ("mine", "quadratic", 3)
    ((_, pictures),) = sample(Half(), plan)
    assert pictures.shape == (1, 32, 32, 3) and seen == [(1000.0, 250.0, 250.0, 0.0, 0.5)]
    assert resolve(packaged, Request(["cat"], sampler="mine", timesteps=[900, 100, 9])).steps == 5
    with pytest.raises(BadInput, match=r"^eta: only ddim or mine takes it, found sampler heun"):
        solver("heun", 0.5)


def test_an_unknown_sampler_lists_the_choices() -> None:
    assert solver("DPMpp-2M") is SAMPLERS["dpmpp-2m"].solve
    with pytest.raises(
        BadInput, match=r"ddpm, ddim, dpmpp-2m, dpmpp-3m, unipc, ipndm, heun, euler, euler-a; did you mean 'ddim'"
    ):
        solver("dimm")


@pytest.mark.parametrize(
    ("name", "eta", "expected"),
    [
        ("ddpm", 0.5, "^eta: only ddim takes it, found sampler ddpm; set `sampler` to ddim"),
        ("Euler", 0.5, "^eta: only ddim takes it, found sampler euler"),
        ("ddim", -0.1, r"^eta: expected 0 .. 1, found -0.1"),
        ("ddim", 1.5, "found 1.5"),
        ("ddim", float("nan"), "found nan"),
    ],
)
def test_an_eta_that_does_not_fit_is_refused(name: str, eta: float, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        solver(name, eta)


SHAPE = (3, 8, 8)
LATENT = normals(3, np.arange(4), 0, SHAPE)
TRAILING = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
UNIPC = {"solver_order": 3, "solver_type": "bh2", "final_sigmas_type": "zero"}


def noise(step: int) -> np.ndarray:
    return normals(3, np.arange(4), step, SHAPE)


def answer(x: np.ndarray, t: float) -> np.ndarray:
    """Any smooth function of x and t will do."""
    return np.sin(2 * x + t / 300).astype(np.float32)


def diffusers_peer(kind: str, steps: int, **settings: Any) -> tuple[Any, Any]:
    """A scheduler of diffusers with its timesteps set, and torch."""
    diffusers = pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    peer = getattr(diffusers, kind)(**settings)
    peer.set_timesteps(steps)
    return peer, torch


PEERS = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpmpp-2m": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "lower_order_final": False, "final_sigmas_type": "zero"},
    ),
    "dpmpp-3m": ("UniPCMultistepScheduler", UNIPC | {"disable_corrector": list(range(50))}),
    "unipc": ("UniPCMultistepScheduler", UNIPC),
}


@pytest.mark.filterwarnings("ignore")  # the peer's own
@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in PEERS), ("ddim", 0.3), ("ddim", 1.0)])
def test_agrees_with_diffusers(name: str, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """dpmpp-3m has its peer in UniPC without the corrector, UniP-3, the same formula.

    That of DPMSolverMultistepScheduler at order 3 takes half of the second derivative, as the authors' code does, and
    is of order 2.
    """
    steps, schedule = 50, Schedule(prediction="v")
    ours = run(solver(name, eta)(LATENT, np.linspace(1000, 0, steps + 1), schedule, noise), answer)

    kind, settings = PEERS[name]
    peer, torch = diffusers_peer(kind, steps, **TRAILING, **settings)
    drawn = iter(range(1, steps + 1))
    for module in ("ddpm", "ddim"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor",
                            lambda shape, **_: torch.from_numpy(noise(next(drawn))))  # fmt: skip
    x = torch.from_numpy(LATENT).double()
    for i in peer.timesteps:
        prediction = torch.from_numpy(answer(x.numpy(), float(i) + 1)).double()
        x = peer.step(prediction, i, x, **({"eta": eta} if eta else {})).prev_sample.double()
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind"), [("euler", "EulerDiscreteScheduler"), ("euler-a", "EulerAncestralDiscreteScheduler")]
)
def test_euler_and_its_ancestral_form_agree_with_diffusers(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for heun, the peer's x is z = x / alpha, and its sigmas are ratio."""
    schedule, timesteps = Schedule(prediction="v"), np.linspace(950, 0, 51)
    ours = run(solver(name)(LATENT, timesteps, schedule, noise), answer)

    peer, torch = diffusers_peer(kind, 50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    peer.timesteps, peer.sigmas = torch.from_numpy(timesteps[:-1]), torch.from_numpy(schedule.ratio(timesteps))
    drawn = iter(range(1, 51))
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(module, lambda shape, **_: torch.from_numpy(noise(next(drawn))))
    z = torch.from_numpy(LATENT / schedule.alpha(950.0))
    for t in peer.timesteps:
        x = peer.scale_model_input(z, t)
        z = peer.step(torch.from_numpy(answer(x.numpy(), float(t))).double(), t, z).prev_sample.double()
    np.testing.assert_allclose(ours, z.numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_heun_agrees_with_diffusers() -> None:
    """The peer's x is z = x / alpha, and it repeats its timesteps. From t = 950: its float32 is too coarse near T."""
    schedule, levels = Schedule(prediction="v"), np.linspace(950, 0, 51)[:-1]
    timesteps = timesteps_for("heun", 99, schedule, timesteps=levels.tolist())
    ours = run(SAMPLERS["heun"].solve(LATENT, timesteps, schedule, noise), answer)

    peer, torch = diffusers_peer("HeunDiscreteScheduler", 50, **TRAILING)
    peer.set_timesteps(timesteps=(levels - 1).tolist())
    z = torch.from_numpy(LATENT).double() * (1 + peer.sigmas[0].double() ** 2) ** 0.5
    np.testing.assert_array_equal(peer.timesteps.numpy() + 1, timesteps[:-1])
    for i in peer.timesteps:
        x = peer.scale_model_input(z, i)
        z = peer.step(torch.from_numpy(answer(x.numpy(), float(i) + 1)).double(), i, z).prev_sample
    np.testing.assert_allclose(ours, z.numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_ipndm_agrees_with_diffusers() -> None:
    """The peer gets our schedule for its own (its betas are sigma). It has no special last step; ours is Euler's."""
    steps, schedule = 50, Schedule(prediction="v")
    timesteps = np.linspace(950, 0, steps + 1)
    ours = run(SAMPLERS["ipndm"].solve(LATENT, timesteps, schedule, noise), answer)

    peer, torch = diffusers_peer("IPNDMScheduler", steps)
    peer.betas, peer.alphas = torch.from_numpy(schedule.sigma(timesteps)), torch.from_numpy(schedule.alpha(timesteps))
    x = torch.from_numpy(LATENT).double()
    for t, i in zip(timesteps, peer.timesteps, strict=False):
        if t == timesteps[-2]:
            peer.ets = []
        x = peer.step(torch.from_numpy(answer(x.numpy(), t)).double(), i, x).prev_sample
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-4)
