"""The loss of one step: noise a batch, drop some labels, compare the prediction. It knows nothing of optimisers or files."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule

from .config import ObjectiveConfig

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
TEST_PICTURES = 1024


def sample_timesteps(config: ObjectiveConfig, schedule: Schedule, n: int, generator: torch.Generator) -> np.ndarray:
    """(n,) float64 t: uniform over 1 .. T (DDPM), or ln(sigma / alpha) normal (EDM, table 1), mapped to a fractional t.

    The normal is stratified, one level from each n-th of the distribution (Kingma et al. 2021, I.1), so that the loss varies less.
    """
    if config.timesteps == "uniform":
        return torch.randint(1, schedule.T + 1, (n,), generator=generator).double().numpy()
    quantiles = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    z = torch.special.ndtri(quantiles.clamp(1e-9, 1 - 1e-9)).numpy()
    return schedule.t_of_ratio(np.exp(config.mean + config.std * z))


def drop_labels(labels: Tensor, null_class: int, share: float, generator: torch.Generator) -> Tensor:
    """Each label becomes the null class with probability `share` (Ho & Salimans 2022, algorithm 1). (B,) int64."""
    dropped = torch.rand(len(labels), generator=generator) < share
    return torch.where(dropped, null_class, labels)


def noised(schedule: Schedule, pictures: Tensor, t: np.ndarray, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the target the network should answer with, both (B, C, H, W), for pictures in [-1, 1] and t (B,)."""
    alpha = torch.from_numpy(schedule.alpha(t)).float()[:, None, None, None]  # (B, 1, 1, 1)
    sigma = torch.from_numpy(schedule.sigma(t)).float()[:, None, None, None]
    x0 = pictures / schedule.data_std
    x_t = alpha * x0 + sigma * eps
    return x_t, eps if schedule.prediction == "eps" else alpha * eps - sigma * x0


def loss(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor,
         null_class: int, generator: torch.Generator) -> Tensor:  # fmt: skip
    """L_simple (DDPM, equation 14) on eps or v: the mean squared error of one noised batch, a scalar.

    Args:
        pictures: (B, C, H, W) float32 in [-1, 1].
        labels: (B,) int64, 0 .. K-1.
    """
    t = sample_timesteps(config, schedule, len(pictures), generator)
    eps = torch.randn(pictures.shape, generator=generator)
    x_t, target = noised(schedule, pictures, t, eps)
    labels = drop_labels(labels, null_class, config.label_dropout, generator)
    device = next(network.parameters()).device
    prediction = network(x_t.to(device), torch.from_numpy(t).float().to(device), labels.to(device))
    return F.mse_loss(prediction.float(), target.to(device))


@torch.no_grad()
def test_errors(predict: Predict, schedule: Schedule, pictures: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared error on held-out pictures with their labels, at ln(sigma / alpha) ~ N(-0.5, 1.2), from a fixed seed.

    The levels are the quantiles of that distribution in a random order, one a picture, so that they add no variance.
    Comparable only between models of the same prediction type and data_std, on the same pictures.

    Args:
        predict: (x_t, t, label) -> eps or v, for (B, C, H, W) float32, (B,) float32 and (B,) int64.
        pictures: (N, C, H, W) uint8, the first `TEST_PICTURES` of which are taken.
        labels: (N,) int64.

    Returns:
        ln(sigma / alpha) and the mean squared error of each picture, (n,) float64 each.
    """
    x0, label = torch.from_numpy(pictures[:TEST_PICTURES]).float() / 127.5 - 1, torch.from_numpy(labels[:TEST_PICTURES])
    generator = torch.Generator().manual_seed(20_061)
    n = len(x0)
    quantiles = (torch.randperm(n, generator=generator).double() + 0.5) / n
    levels = -0.5 + 1.2 * torch.special.ndtri(quantiles).numpy()
    t = schedule.t_of_ratio(np.exp(levels))
    eps, errors = torch.randn(x0.shape, generator=generator), []
    for i in range(0, n, 128):
        part = slice(i, i + 128)
        x_t, target = noised(schedule, x0[part], t[part], eps[part])
        prediction = predict(x_t, torch.from_numpy(t[part]).float(), label[part])
        errors.append(F.mse_loss(prediction.float().cpu(), target, reduction="none").double().mean(dim=(1, 2, 3)).numpy())
    return levels, np.concatenate(errors)


def test_loss(predict: Predict, schedule: Schedule, pictures: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `test_errors`: one number for a model."""
    return float(test_errors(predict, schedule, pictures, labels)[1].mean())
