"""Noising, weights and the bound's rate against closed forms, label dropout within a binomial bound, the test loss."""

import itertools

import numpy as np
import pytest
import torch

from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.objective import (
    LearnedWeight,
    drop_labels,
    held_out_loss,
    loss,
    loss_weights,
    noised,
    rate,
    sample_timesteps,
)


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


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_target_leads_back_to_the_picture(prediction: str) -> None:
    schedule, generator = Schedule(prediction=prediction, data_std=0.5), torch.Generator().manual_seed(0)
    pictures, eps = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1, torch.randn(4, 3, 8, 8, generator=generator)
    for t in (10.0, 400.0, 800.0):
        x_t, target = noised(schedule, pictures, np.full(4, t), eps)
        np.testing.assert_allclose(schedule.to_x0(target.numpy(), x_t.numpy(), t) * 0.5, pictures.numpy(), atol=1e-5)
        np.testing.assert_allclose(schedule.to_eps(target.numpy(), x_t.numpy(), t), eps.numpy(), atol=1e-5)


def test_labels_are_dropped_for_a_tenth() -> None:
    n, share = 100_000, 0.1
    labels = drop_labels(torch.zeros(n, dtype=torch.int64), 10, share, Draws(0, 3, n))
    dropped = int((labels == 10).sum())
    assert abs(dropped - n * share) < 4 * (n * share * (1 - share)) ** 0.5
    assert set(labels.unique().tolist()) == {0, 10}


def drawn(n: int = 100_000, seed: int = 0, **settings: object) -> np.ndarray:
    return sample_timesteps(ObjectiveConfig(**settings), Schedule(), Draws(seed, 0, n))


def test_lognormal_levels_have_their_mean_and_deviation() -> None:
    levels = np.log(Schedule().ratio(drawn(timesteps="lognormal", mean=-0.5, std=1.2)))
    assert levels.mean() == pytest.approx(-0.5, abs=0.02) and levels.std() == pytest.approx(1.2, abs=0.02)


def test_lognormal_levels_take_one_from_each_share_of_the_distribution() -> None:
    n = 64
    t = drawn(n, 1, timesteps="lognormal", mean=-0.5, std=1.2)
    quantiles = torch.special.ndtr(torch.from_numpy((np.log(Schedule().ratio(t)) + 0.5) / 1.2))
    assert np.floor(quantiles.numpy() * n).astype(int).tolist() == list(range(n))


def test_uniform_steps_are_one_to_t_max() -> None:
    t = drawn(timesteps="uniform")
    assert sorted(set(t.tolist())) == list(range(1, 1001)) and np.bincount(t.astype(int))[1:].tolist() == [100] * 1000


def test_continuous_times_fill_what_lies_between() -> None:
    t = drawn(timesteps="continuous")
    assert 0 < t.min() < 0.02 and 999.98 < t.max() < 1000 and t.mean() == pytest.approx(500, abs=0.1)


def test_logit_normal_times_have_a_normal_logit() -> None:
    t = drawn(timesteps="logit-normal", mean=0.3, std=0.8)
    logits = np.log(t / (1000 - t))
    assert logits.mean() == pytest.approx(0.3, abs=0.01) and logits.std() == pytest.approx(0.8, abs=0.01)


def test_min_snr_is_what_its_authors_write_for_each_prediction() -> None:
    """Hang et al. 2023, section 3.4: min(snr, 5) on x0, over snr on eps, over snr + 1 on v."""
    t = np.array([1.0, 200.0, 600.0, 990.0])
    snr = 1 / Schedule().ratio(t) ** 2
    for prediction, expected in (("x0", 1.0), ("eps", snr), ("v", snr + 1)):
        config = ObjectiveConfig(prediction=prediction, weighting="min-snr")
        found = loss_weights(config, Schedule(prediction=prediction), t)
        np.testing.assert_allclose(found, np.minimum(snr, 5) / expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_bound_is_the_divergence_of_two_gaussians(prediction: str, kind: str) -> None:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) at variance beta: |difference of means|^2 / (2 beta) (DDPM, (7) and (8))."""
    schedule, error = Schedule(kind, prediction=prediction), 0.01
    for t in (2.0, 300.0, 999.0):
        bar, before = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(t - 1))
        beta = 1 - bar / before
        x0s = [schedule.to_x0(np.array(answer), np.array(0.7), t) for answer in (0.2, 0.2 + error)]
        means = [before**0.5 * beta / (1 - bar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - bar) * 0.7 for x0 in x0s]
        found = loss_weights(ObjectiveConfig(prediction=prediction, weighting="bound"), schedule, np.array([t]))[0]
        assert found * error**2 == pytest.approx(float(means[1] - means[0]) ** 2 / (2 * beta), rel=1e-6)


def test_the_bound_is_for_steps_alone() -> None:
    with pytest.raises(ValueError, match=r"set objective.timesteps=uniform"):
        ObjectiveConfig(weighting="bound", timesteps="lognormal")


def test_the_learned_weight_finds_the_loss_of_each_time() -> None:
    """The minimum of l / e^u + u over u is at e^u = l."""
    weight, share = LearnedWeight(), torch.linspace(0, 1, 200)
    expected = 0.3 + 0.2 * torch.cos(torch.pi * share)
    optimiser = torch.optim.Adam(weight.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        u = weight(share)
        (expected * torch.exp(-u) + u).mean().backward()
        optimiser.step()
    torch.testing.assert_close(torch.exp(weight(share)), expected, rtol=0.02, atol=0)


class _Zero(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.loss_weight = torch.nn.Parameter(torch.zeros(())), LearnedWeight()

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_a_network_that_answers_zero_has_the_loss_of_its_target() -> None:
    """E |eps|^2 = 1; and E |v|^2 = 1 on data of unit variance, whatever the noise level."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.where(
        torch.rand(512, 3, 8, 8, generator=generator) < 0.5, 64, 191
    ).byte()  # -0.5 and 0.5: data_std is 0.5
    pictures, labels = stored / 127.5 - 1, torch.zeros(512, dtype=torch.int64)
    for prediction, data_std, weighting in (("eps", 1.0, "simple"), ("v", 0.5, "simple"), ("x0", 0.5, "learned")):
        config = ObjectiveConfig(prediction=prediction, data_std=data_std, timesteps="lognormal", weighting=weighting)
        schedule = Schedule(prediction=prediction, data_std=data_std)
        assert loss(_Zero(), config, schedule, pictures, labels, 3, Draws(0, 0, 512)).item() == pytest.approx(
            1, abs=0.02
        )
        assert held_out_loss(
            lambda x, t, label: torch.zeros_like(x), schedule, stored.numpy(), labels.numpy()
        ) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "prediction", "data_std"), [("cosine", "v", 0.5), ("linear", "eps", 1.0), ("cosine", "x0", 0.5)]
)
def test_the_rate_is_that_of_a_gaussian_in_closed_form(kind: str, prediction: str, data_std: float) -> None:
    """Pictures of independent normal values and their exact denoiser, against the sum over DDPM's 1000 steps of the
    divergences of two normal distributions: the posterior (equation 7), and the same with the estimate in x0's place
    and the variance beta."""
    std, schedule = 0.3, Schedule(kind, prediction=prediction, data_std=data_std)
    pictures = np.clip(np.random.default_rng(0).normal(127.5, 127.5 * std, (1024, 3, 8, 8)).round(), 0, 255).astype(
        np.uint8
    )

    def denoiser(x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        answers, variance = [], (std / data_std) ** 2
        for x, step in zip(x_t.double().numpy(), t.double().numpy(), strict=True):
            bar = float(schedule.alpha_bar(step))
            answers.append(schedule.from_x0(bar**0.5 * variance / (bar * variance + 1 - bar) * x, x, step))
        return torch.from_numpy(np.stack(answers)).float()

    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected = 0.0
    for before, bar in itertools.pairwise(bars):
        beta = 1 - bar / before
        variance, towards_x0 = (1 - before) / (1 - bar) * beta, before**0.5 * beta / (1 - bar)
        of_the_estimate = std**2 * (1 - bar) / (bar * std**2 + 1 - bar)  # E (x0 - its estimate)^2
        expected += (variance / beta - 1 - np.log(variance / beta) + towards_x0**2 * of_the_estimate / beta) / 2
    found = rate(denoiser, schedule, pictures, np.zeros(1024, np.int64))
    assert found == pytest.approx(expected / np.log(2), rel=0.01)
