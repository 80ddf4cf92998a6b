"""The loss of a step: noise a batch, drop labels, compare the prediction. It knows nothing of optimisers or files."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule

from . import registry
from .config import Config, ObjectiveConfig
from .draws import Draws

Predict = Callable[..., Tensor]  # of x_t, t, label and the further inputs that a network takes
Inputs = Callable[[Tensor], tuple[Tensor, ...]]
TEST_PICTURES = 1024


def sample_timesteps(config: ObjectiveConfig, schedule: Schedule, draws: Draws) -> np.ndarray:
    """(B,) float64 t, 0 .. T.

    uniform: 1 .. T (DDPM). continuous: anywhere between. lognormal: ln(sigma / alpha) is normal (EDM, table 1).
    logit-normal: ln of t / (T - t) is (Esser et al. 2024). All are stratified, one t from each B-th of the distribution
    (Kingma et al. 2021, I.1), so that the loss varies less.
    """
    quantiles = draws.quantiles().clamp(1e-9, 1 - 1e-9)
    if config.timesteps == "uniform":
        return np.floor(quantiles.numpy() * schedule.T) + 1
    if config.timesteps == "continuous":
        return quantiles.numpy() * schedule.T
    z = config.mean + config.std * torch.special.ndtri(quantiles)
    if config.timesteps == "logit-normal":
        return torch.sigmoid(z).numpy() * schedule.T
    return schedule.t_of_ratio(np.exp(z.numpy()))


def drop_labels(labels: Tensor, null_class: int, share: float, draws: Draws) -> Tensor:
    """Each label becomes the null class with probability `share` (Ho & Salimans 2022, algorithm 1). (B,) int64."""
    dropped = (draws.uniform() < share).to(labels.device)
    return torch.where(dropped, null_class, labels)


def noised(schedule: Schedule, pictures: Tensor, t: np.ndarray, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the target the network should answer with, both (B, C, H, W), for pictures in [-1, 1] and t (B,)."""
    x0 = pictures / schedule.data_std
    return schedule.noised(x0, eps, t), schedule.target(x0, eps, t)


def loss_weights(config: ObjectiveConfig, schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """What the squared error of each row is multiplied with, (B,) float64.

    simple: 1, L_simple on the prediction itself (DDPM, equation 14). min-snr: min(snr, gamma) on x0 (Hang et al. 2023).
    bound: the variational bound's, at the posterior variance beta_t (DDPM, equation 12), in nats.
    """
    if config.weighting in ("simple", "learned"):
        return np.ones(len(t))
    alpha_bar = schedule.alpha_bar(t)
    snr = alpha_bar / (1 - alpha_bar)
    if config.weighting == "min-snr":
        return _on_eps(schedule, t) / snr * np.minimum(snr, config.gamma)
    beta = 1 - alpha_bar / schedule.alpha_bar(t - 1)
    return _on_eps(schedule, t) * beta / (2 * (1 - beta) * (1 - alpha_bar))


def _on_eps(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """|error of eps|^2 divided by |error of the prediction|^2, (B,)."""
    alpha_bar = schedule.alpha_bar(t)
    return {"eps": np.ones(len(t)), "v": alpha_bar, "x0": alpha_bar / (1 - alpha_bar)}[schedule.prediction]


class LearnedWeight(nn.Module):
    """u(t), the logarithm of the loss that is expected at t: a cosine series. Training on loss / e^u + u makes all t
    count alike.

    After EDM2 (Karras et al. 2024), where u is a small network. It is a part of the network that only training uses.
    """

    def __init__(self, terms: int = 16) -> None:
        super().__init__()
        self.series = nn.Parameter(torch.zeros(terms))

    def forward(self, share: Tensor) -> Tensor:
        """t / T (B,) -> u (B,)."""
        orders = torch.arange(len(self.series), device=share.device, dtype=torch.float32)
        return torch.cos(math.pi * share[:, None] * orders) @ self.series  # (B, terms) @ (terms,)


class WithInputs(nn.Module):
    """A network with its further inputs of one batch filled in."""

    def __init__(self, network: nn.Module, *inputs: Tensor) -> None:
        super().__init__()
        self._network, self._inputs = network, inputs
        if hasattr(network, "loss_weight"):
            self.loss_weight = network.loss_weight

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """As `UNet.forward`."""
        prediction: Tensor = self._network(x, t, label, *self._inputs)
        return prediction


def no_inputs(pictures: Tensor) -> tuple[Tensor, ...]:
    """The further inputs of networks that take x_t, t and the class alone, for clean pictures (B, C, H, W)."""
    return ()


def loss(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor,
         null_class: int, draws: Draws) -> Tensor:  # fmt: skip
    """The weighted mean squared error of one noised batch, a scalar; by default L_simple (DDPM, equation 14).

    Args:
        pictures: (B, C, H, W) float32 in [-1, 1].
        labels: (B,) int64, 0 .. K-1.
    """
    t = sample_timesteps(config, schedule, draws)
    eps = draws.normal(pictures.shape[1:]).to(pictures.device, non_blocking=True)
    x_t, target = noised(schedule, pictures, t, eps)
    labels = drop_labels(labels, null_class, config.label_dropout, draws)
    prediction = network(x_t, torch.from_numpy(t).float().to(x_t.device), labels)
    errors = F.mse_loss(prediction.float(), target, reduction="none").mean(dim=(1, 2, 3))  # (B,)
    if config.weighting == "learned":
        u = network.get_submodule("loss_weight")(torch.from_numpy(t / schedule.T).float().to(x_t.device))
        return (errors * torch.exp(-u) + u).mean()
    return (errors * torch.from_numpy(loss_weights(config, schedule, t)).float().to(x_t.device)).mean()


class Loss(nn.Module):
    """The objective that a config names, as a module with one forward pass, as torch's wrappers want it."""

    def __init__(self, network: nn.Module, config: Config, null_class: int) -> None:
        super().__init__()
        self.network, self._config, self._null_class = network, config, null_class
        self._objective = registry.bound("objective", config.objective.name, config.objective.options)

    def forward(self, pictures: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) in [-1, 1], (B,) -> a scalar."""
        config = self._config
        value: Tensor = self._objective(
            self.network, config.objective, config.schedule, pictures, labels, self._null_class, draws
        )
        return value


def held_out_errors(
    predict: Predict, schedule: Schedule, pictures: np.ndarray, labels: np.ndarray, inputs: Inputs = no_inputs
) -> tuple[np.ndarray, np.ndarray]:
    """The squared error on held-out pictures with their labels, at ln(sigma / alpha) ~ N(-0.5, 1.2), from a fixed seed.

    The levels are the quantiles of that distribution in a random order, one a picture, so that they add no variance.
    Comparable only between models of the same prediction type and data_std, on the same pictures.

    Args:
        predict: (x_t, t, label) -> the prediction, for (B, C, H, W) float32, (B,) float32 and (B,) int64.
        pictures: (N, C, H, W) uint8, the first `TEST_PICTURES` of which are taken.
        labels: (N,) int64.
        inputs: further ones of the network, for clean pictures (B, C, H, W) in [-1, 1].

    Returns:
        ln(sigma / alpha) and the mean squared error of each picture, (n,) float64 each.
    """

    def levels(quantiles: Tensor) -> np.ndarray:
        normal: np.ndarray = torch.special.ndtri(quantiles).numpy()
        return -0.5 + 1.2 * normal

    return _errors_at(levels, predict, schedule, pictures, labels, inputs)


def held_out_loss(
    predict: Predict, schedule: Schedule, pictures: np.ndarray, labels: np.ndarray, inputs: Inputs = no_inputs
) -> float:
    """The mean of `held_out_errors`: one number for a model."""
    return float(held_out_errors(predict, schedule, pictures, labels, inputs)[1].mean())


def rate(
    predict: Predict, schedule: Schedule, pictures: np.ndarray, labels: np.ndarray, inputs: Inputs = no_inputs
) -> float:
    """The rate of DDPM's variational bound in bits per dimension; published for CIFAR-10: 1.78 (Ho et al. 2020, 4.3).

    L_1 + .. + L_{T-1} (equations 5, 8 and 12) of that paper's linear schedule, T = 1000 and variance beta_t, whatever
    the network was trained on: it sees a step as a noise level. Steps are drawn, one per picture, in proportion to the
    weights that the sum gives the network's squared errors. The rate is their mean times the sum of the weights, plus a
    constant that does not depend on the network.

    Args:
        predict, pictures, labels, inputs: as for `held_out_errors`.
    """
    paper = Schedule("linear", 1000, "eps")
    steps = np.arange(2, paper.T + 1)
    # the posterior's variance (equation 7) over beta
    shrink = (1 - paper.alpha_bar(steps - 1)) / (1 - paper.alpha_bar(steps))
    ratio = paper.ratio(steps) / schedule.data_std
    bound = loss_weights(ObjectiveConfig(prediction="eps", schedule="linear", weighting="bound"), paper, steps)
    cumulative = np.cumsum(bound * _on_eps(schedule, schedule.t_of_ratio(ratio)))

    def levels(quantiles: Tensor) -> np.ndarray:
        return np.log(ratio[np.searchsorted(cumulative, quantiles.numpy() * cumulative[-1])])

    errors = _errors_at(levels, predict, schedule, pictures, labels, inputs)[1]
    fixed = float((shrink - 1 - np.log(shrink)).sum()) / 2
    return (fixed + float(cumulative[-1] * errors.mean())) / math.log(2)


@torch.no_grad()
def _errors_at(levels_of: Callable[[Tensor], np.ndarray], predict: Predict, schedule: Schedule, pictures: np.ndarray,
               labels: np.ndarray, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """As `held_out_errors`, at the ln(sigma / alpha) that `levels_of` makes of the quantiles (n,)."""
    x0, label = torch.tensor(pictures[:TEST_PICTURES]).float() / 127.5 - 1, torch.tensor(labels[:TEST_PICTURES])
    generator = torch.Generator().manual_seed(20_061)
    n = len(x0)
    levels = levels_of((torch.randperm(n, generator=generator).double() + 0.5) / n)
    t = schedule.t_of_ratio(np.exp(levels))
    eps, errors = torch.randn(x0.shape, generator=generator), []
    for i in range(0, n, 128):
        part = slice(i, i + 128)
        x_t, target = noised(schedule, x0[part], t[part], eps[part])
        prediction = predict(x_t, torch.from_numpy(t[part]).float(), label[part], *inputs(x0[part]))
        errors.append(
            F.mse_loss(prediction.float().cpu(), target, reduction="none").double().mean(dim=(1, 2, 3)).numpy()
        )
    return levels, np.concatenate(errors)
