import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfgdiff.runtime.samplers import dpmpp_2m, run
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer import trajectory
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.steps import student_timesteps
from cfgdiff.trainer.teacher import Teacher
from cfgdiff.trainer.trajectory import follow

STD = 0.6  # of the data: every value is normal, so the best denoiser and the probability-flow ODE have closed forms
SCHEDULE = Schedule(prediction="v")


def variance(t: float) -> float:
    return float(SCHEDULE.alpha(t)) ** 2 * STD**2 + float(SCHEDULE.sigma(t)) ** 2


class Gaussian(nn.Module):
    """The best v for data of deviation STD (Karras et al. 2022, B.3, in v)."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor | None = None) -> Tensor:
        alpha, sigma = (
            torch.from_numpy(f(t.numpy())).float()[:, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        x0 = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x
        return (alpha * x - x0) / sigma


class Learned(nn.Module):
    """x0 = c x with a c for each timestep it meets."""

    def __init__(self, timesteps: list[float]) -> None:
        super().__init__()
        self.timesteps, self.factors = timesteps, nn.Parameter(torch.zeros(len(timesteps)))

    def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
        i = int(np.argmin(np.abs(np.array(self.timesteps) - t[0].item())))
        alpha, sigma = (float(f(self.timesteps[i])) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        return (alpha * x - self.factors[i] * x) / sigma


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(Gaussian(), SCHEDULE, 2, (0.1, 3.0), takes_w=True)


def test_a_teacher_goes_where_the_runtime_s_sampler_goes(teacher: Teacher) -> None:
    timesteps, x = student_timesteps(1, 1000, 12), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def predict(x: np.ndarray, t: float) -> np.ndarray:
        return Gaussian()(torch.from_numpy(x).float(), torch.full((2,), t), torch.zeros(2)).numpy()

    expected = run(dpmpp_2m(x.numpy(), timesteps, SCHEDULE, lambda step: x.numpy()), predict)
    reached = follow(teacher, x, timesteps, torch.zeros(2, dtype=torch.int64), torch.ones(2))
    np.testing.assert_allclose(reached.numpy(), expected, atol=2e-5)


def test_a_teacher_with_many_steps_solves_the_ode(teacher: Teacher) -> None:
    x = torch.ones(1, 3, 4, 4)
    timesteps = student_timesteps(2, 1000, 200)[:201]
    reached = follow(teacher, x, timesteps, torch.zeros(1, dtype=torch.int64), torch.ones(1))
    assert reached.mean().item() == pytest.approx(math.sqrt(variance(timesteps[-1]) / variance(timesteps[0])), rel=2e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_trained_steps_end_at_the_closed_form(steps: int, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "load_teacher", lambda *_: teacher)
    network = Learned(student_timesteps(steps, 1000)[:-1].tolist())
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    pictures, labels = torch.zeros(16, 3, 4, 4), torch.zeros(16, dtype=torch.int64)
    for i in range(120):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - i / 120)
        optimiser.zero_grad()
        value = trajectory.trajectory(network, ObjectiveConfig(), SCHEDULE, pictures, labels, 2, Draws(0, i, 16),
                                      steps=(steps,), teacher_steps=64)  # fmt: skip
        value.backward()
        optimiser.step()
    x, timesteps = torch.ones(1, 1, 1, 1), student_timesteps(steps, 1000)
    for t, s, factor in zip(timesteps[:-1], timesteps[1:], network.factors.tolist(), strict=True):
        x = trajectory.step(SCHEDULE, x, factor * x, t, s)
    assert x.item() == pytest.approx(STD, rel=0.03)  # the latent has deviation 1, the data STD


def test_each_number_of_steps_has_its_turn(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "load_teacher", lambda *_: teacher)
    seen: list[float] = []

    class Watched(Gaussian):
        def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor | None = None) -> Tensor:
            seen.append(round(t[0].item(), 1))
            return super().forward(x, t, label, w)

    for i in range(3):
        pictures, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
        trajectory.trajectory(Watched(), ObjectiveConfig(), SCHEDULE, pictures, labels, 2,
                              Draws(0, i, 2), steps=(1, 3), teacher_steps=6)  # fmt: skip
    one, three = (student_timesteps(n, 1000)[:-1].round(1).tolist() for n in (1, 3))
    assert seen == [*one, *three, *one]
