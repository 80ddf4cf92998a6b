"""Guidance folded into the network: w is an input, an evaluation costs one row, and what a teacher does with two is learned.

The first stage of Meng et al. 2023 ("On distillation of guided diffusion models"). What the teacher's guidance costs at sampling, two rows
inside its interval, is paid once, in training.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.schedule import Schedule

from .config import NetworkConfig, ObjectiveConfig
from .draws import Draws
from .objective import noised
from .unet import UNet
from .weights import load_model

MOST_GUIDANCE = 8.0  # w is learned from 1 to here
WAVES = 16


class GuidedUNet(UNet):
    """The U-Net with w as a third thing that it is conditioned on; it starts as the U-Net, whose answers are those at w = 1."""

    learned_later = ("strength.",)  # what the weights of a network without w, given with --init, need not hold

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, image_shape, num_classes)
        self.strength = nn.Linear(2 * WAVES, 4 * config.channels)
        nn.init.zeros_(self.strength.weight)
        nn.init.zeros_(self.strength.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """As `UNet.forward`, guided by w (B,), 1 .. 8; without it w = 1."""
        embedding = self.embed(t, label)
        return self.answer(x, embedding if w is None else embedding + self.strength(guidance_embedding(w)))


def guidance_embedding(w: Tensor) -> Tensor:
    """Waves of ln w that are all 0 at w = 1: (B,) -> (B, 2 WAVES)."""
    orders = torch.arange(1, WAVES + 1, device=w.device, dtype=torch.float32)
    angles = w.float().clamp(min=0.5).log()[:, None] * orders * (math.pi / 2.2)  # (B, WAVES); the longest wave spans w = 0.5 .. 9
    return torch.cat([angles.cos() - 1, angles.sin()], dim=1)


class Teacher:
    """A trained network that answers at any w: in one row where it takes w, else in two, inside its interval of sigma / alpha.

    Args:
        path: a checkpoint, a run or a bundle; a bundle must be of this network's shape.
        interval: where guidance acts, for networks that do not take w.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, null_class: int, interval: tuple[float, float]) -> None:
        self.network, self.schedule, self._null_class = network, schedule, null_class
        self._first, self._last = (float(schedule.t_of_ratio(ratio)) for ratio in interval)
        self._takes_w = isinstance(network, GuidedUNet)

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        """The guided prediction at x_t: (B, C, H, W), (B,), (B,), (B,) -> (B, C, H, W) float32."""
        if self._takes_w:
            guided: Tensor = self.network(x, t, labels, w)
            return guided.float()
        inside = (t >= self._first) & (t <= self._last)
        null = torch.full_like(labels, self._null_class)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, null])).float()
        cond, uncond = both.chunk(2)
        return uncond + torch.where(inside, w, 1.0).float()[:, None, None, None] * (cond - uncond)


@cache
def load_teacher(path: str, device: str, null_class: int, interval: tuple[float, float], compiled: bool) -> Teacher:
    """The teacher at `path`, once a process. Raises `BadInput` without a path, `Failure` for what is no run or checkpoint."""
    if not path:
        raise BadInput("objective.options: expected teacher, a run or checkpoint to learn from, found none; give --teacher PATH")
    model = load_model(Path(path))
    if len(model.class_names) != null_class:
        raise Failure(f"teacher {path}: knows {len(model.class_names)} classes, the data have {null_class}; take the data it was trained on")
    network = model.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile()
    return Teacher(network, model.schedule, null_class, interval)


def draw_guidance(draws: Draws, most: float, device: torch.device) -> Tensor:
    """w of each row: 1 for a tenth of them, else even in ln w up to `most`. (B,) float32."""
    share = (draws.uniform() * 1.1 - 0.1).clamp(min=0)
    return torch.exp(share * math.log(most)).float().to(device)


def distilled_guidance(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
                       draws: Draws, *, teacher: str = "", interval: tuple[float, float] = (0.1, 3.0),
                       most: float = MOST_GUIDANCE) -> Tensor:  # fmt: skip
    """Squared error to a teacher's guided prediction at a random w (Meng et al. 2023, equation 6)."""
    guide = load_teacher(str(teacher), str(pictures.device), null_class, tuple(interval), is_compiled(network))
    quantiles = draws.quantiles().clamp(1e-6, 1 - 1e-6)
    t = schedule.t_of_ratio(np.exp((config.mean + config.std * torch.special.ndtri(quantiles)).numpy()))
    x_t, _ = noised(schedule, pictures, t, draws.normal(pictures.shape[1:]).to(pictures.device))
    w = draw_guidance(draws, most, pictures.device)
    dropped = (draws.uniform() < config.label_dropout).to(labels.device)
    labels, w = torch.where(dropped, null_class, labels), torch.where(dropped, 1.0, w)
    times = torch.from_numpy(t).float().to(x_t.device)
    target = guide.predict(x_t, times, labels, w)
    prediction = network(x_t, times, labels, w)
    return F.mse_loss(prediction.float(), target)


def is_compiled(network: nn.Module) -> bool:
    """Whether the run compiles its network, and so should its teacher be."""
    return getattr(network, "_compiled_call_impl", None) is not None
