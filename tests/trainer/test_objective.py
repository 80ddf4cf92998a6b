"""The noising against its closed form, label dropout within a binomial bound, the test loss against a known predictor."""

import numpy as np
import pytest
import torch

from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.objective import drop_labels, loss, noised, sample_timesteps
from cfgdiff.trainer.objective import test_loss as measured_loss


def test_x_t_has_the_mean_and_variance_of_its_closed_form() -> None:
    schedule, generator = Schedule(prediction="eps"), torch.Generator().manual_seed(0)
    pictures = torch.full((200_000, 1, 1, 1), 0.6)
    eps = torch.randn(pictures.shape, generator=generator)
    for t in (1.0, 250.0, 500.5, 999.0):
        x_t, target = noised(schedule, pictures, np.full(len(pictures), t), eps)
        alpha_bar = float(schedule.alpha_bar(t))
        bound = 5 * (1 - alpha_bar) ** 0.5 / len(pictures) ** 0.5
        assert abs(x_t.mean().item() - 0.6 * alpha_bar**0.5) < bound + 1e-6
        assert x_t.double().var().item() == pytest.approx(1 - alpha_bar, rel=0.02)
        assert torch.equal(target, eps)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_target_leads_back_to_the_picture(prediction: str) -> None:
    schedule, generator = Schedule(prediction=prediction, data_std=0.5), torch.Generator().manual_seed(0)
    pictures, eps = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1, torch.randn(4, 3, 8, 8, generator=generator)
    for t in (10.0, 400.0, 800.0):
        x_t, target = noised(schedule, pictures, np.full(4, t), eps)
        np.testing.assert_allclose(schedule.to_x0(target.numpy(), x_t.numpy(), t) * 0.5, pictures.numpy(), atol=1e-5)
        np.testing.assert_allclose(schedule.to_eps(target.numpy(), x_t.numpy(), t), eps.numpy(), atol=1e-5)


def test_labels_are_dropped_for_a_tenth() -> None:
    n, share = 100_000, 0.1
    labels = drop_labels(torch.zeros(n, dtype=torch.int64), 10, share, torch.Generator().manual_seed(3))
    dropped = int((labels == 10).sum())
    assert abs(dropped - n * share) < 4 * (n * share * (1 - share)) ** 0.5
    assert set(labels.unique().tolist()) == {0, 10}


def test_lognormal_levels_have_their_mean_and_deviation() -> None:
    schedule, config = Schedule(), ObjectiveConfig(timesteps="lognormal", mean=-0.5, std=1.2)
    t = sample_timesteps(config, schedule, 100_000, torch.Generator().manual_seed(0))
    levels = np.log(schedule.ratio(t))
    assert levels.mean() == pytest.approx(-0.5, abs=0.02) and levels.std() == pytest.approx(1.2, abs=0.02)


def test_lognormal_levels_take_one_from_each_share_of_the_distribution() -> None:
    schedule, n = Schedule(), 64
    t = sample_timesteps(ObjectiveConfig(timesteps="lognormal", mean=-0.5, std=1.2), schedule, n, torch.Generator().manual_seed(1))
    quantiles = torch.special.ndtr(torch.from_numpy((np.log(schedule.ratio(t)) + 0.5) / 1.2))
    assert np.floor(quantiles.numpy() * n).astype(int).tolist() == list(range(n))


def test_uniform_steps_are_one_to_t_max() -> None:
    t = sample_timesteps(ObjectiveConfig(timesteps="uniform"), Schedule(), 50_000, torch.Generator().manual_seed(0))
    assert t.min() == 1 and t.max() == 1000 and np.array_equal(t, np.round(t))


class _Zero(torch.nn.Module):
    null_class = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_a_network_that_answers_zero_has_the_loss_of_its_target() -> None:
    """E |eps|^2 = 1; and E |v|^2 = 1 on data of unit variance, whatever the noise level."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.where(torch.rand(512, 3, 8, 8, generator=generator) < 0.5, 64, 191).byte()  # -0.5 and 0.5: data_std is 0.5
    pictures, labels = stored / 127.5 - 1, torch.zeros(512, dtype=torch.int64)
    for prediction, data_std in (("eps", 1.0), ("v", 0.5)):
        config = ObjectiveConfig(prediction=prediction, data_std=data_std, timesteps="lognormal")
        schedule = Schedule(prediction=prediction, data_std=data_std)
        assert loss(_Zero(), config, schedule, pictures, labels, 3, generator).item() == pytest.approx(1, abs=0.02)
        assert measured_loss(lambda x, t, label: torch.zeros_like(x), schedule, stored.numpy(), labels.numpy()) == pytest.approx(
            1, abs=0.02
        )
