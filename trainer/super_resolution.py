"""Super-resolution stages of a cascade (Ho et al. 2022): a network that sees a smaller picture, and its objective.

Two parts work together: `--set network.name=super-resolution-unet --set objective.name=super-resolution`.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cfgdiff.runtime.bundle import Condition
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.runtime.upscale import condition, reduced

from .config import NetworkConfig, ObjectiveConfig
from .draws import Draws
from .objective import Inputs, WithInputs, loss, no_inputs
from .unet import UNet, conv, timestep_embedding

MOST, NOISE = 0.5, 0.1  # of T: the most noise in training, and the noise in sampling


class SuperResolutionUNet(UNet):
    """The U-Net with an enlarged smaller picture beside x_t, and the level of its noise. For `super-resolution`."""

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, image_shape, num_classes)
        width, embedding = config.channels, 4 * config.channels
        self.stem = conv(2 * image_shape[0] * config.patch**2, width)
        self.noise = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, label: Tensor, condition: Tensor, condition_noise: Tensor
    ) -> Tensor:
        """As `UNet.forward`; see `runtime.upscale.condition` for the condition (B, C, H, W) and its noise (B,)."""
        embedding = self.embed(t, label) + self.noise(timestep_embedding(condition_noise, self.width))
        return self.answer(torch.cat([x, condition], dim=1), embedding)


def super_resolution(
    network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
    draws: Draws, *, factor: Literal[2, 4, 8] = 2, noise: Annotated[float, Field(ge=0, le=1)] = MOST,
) -> Tensor:  # fmt: skip
    """The loss on pictures beside their reduced selves, noised at random levels of at most `noise` of the schedule."""
    low = reduced(pictures, factor)
    s = draws.uniform() * noise * schedule.T
    eps = draws.normal(low.shape[1:]).to(pictures.device, non_blocking=True)
    inputs = condition(low, eps, s.numpy(), schedule, factor), s.float().to(pictures.device)
    return loss(WithInputs(network, *inputs), config, schedule, pictures, labels, null_class, draws)


def condition_of(config: ObjectiveConfig, schedule: Schedule) -> Condition:
    """What sampling must know of a stage that was trained so."""
    most = float(config.options.get("noise", MOST))
    return Condition(int(config.options.get("factor", 2)), min(NOISE, most) * schedule.T, most * schedule.T)


def held_out_inputs(known: Condition | None, schedule: Schedule) -> Inputs:
    """The further inputs to measure a model with: of a stage, the smaller pictures with sampling's noise, from a fixed
    seed."""
    if known is None:
        return no_inputs

    def inputs(pictures: Tensor) -> tuple[Tensor, ...]:
        low, generator = reduced(pictures, known.factor), torch.Generator().manual_seed(20_062)
        eps = torch.randn(low.shape, generator=generator).to(pictures.device)
        noise = torch.full((len(pictures),), known.noise, device=pictures.device)
        return condition(low, eps, known.noise, schedule, known.factor), noise

    return inputs
