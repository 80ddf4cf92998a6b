import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer import consistency
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.consistency import earlier
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.teacher import Teacher

STD = 0.6  # of the data, which are normal
SCHEDULE = Schedule(prediction="v")


class Implies(nn.Module):
    """v that implies x0 = factor(alpha, sigma) x."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
        alpha, sigma = (
            torch.from_numpy(f(t.double().numpy())).float()[:, None, None, None]
            for f in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        variance = alpha**2 * STD**2 + sigma**2
        # 1: the posterior mean; 1/2: where the path through x ends, for it keeps x / its deviation
        factor = alpha * STD**2 / variance if self.power == 1 else STD / variance.sqrt()
        return (alpha * x - factor * x) / sigma.clamp(min=1e-3)


def loss(network: nn.Module, step: int, monkeypatch: pytest.MonkeyPatch) -> float:
    teacher = Teacher(Implies(1), SCHEDULE, 2, (0.1, 3.0), takes_w=True)
    monkeypatch.setattr(consistency, "load_teacher", lambda *_: teacher)
    pictures = torch.randn(256, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * STD
    labels = torch.zeros(256, dtype=torch.int64)
    args = network, ObjectiveConfig(), SCHEDULE, pictures, labels, 2, Draws(0, step, 256)
    return consistency.consistency(*args, halve_every=100).item()


def test_it_is_least_where_predictions_are_the_ends_of_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, means = (loss(Implies(power), 500, monkeypatch) for power in (0.5, 1))
    assert ends < 0.1 * means


def test_the_two_points_come_closer_and_stay_in_order() -> None:
    ratio = np.array([0.01, 0.3, 2.0, 50.0])
    levels = [earlier(ratio, halvings) for halvings in (0, 3, 8)]
    assert (levels[0] < levels[1])[1:].all()
    for level in levels:
        assert (level >= 0).all()
        assert (level < ratio).all()
    np.testing.assert_allclose(levels[2][3], 50 * (1 - 1 / 512), rtol=1e-6)
