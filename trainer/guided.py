"""The U-Net with the guidance w as an input, so that an evaluation costs one row. It knows nothing of teachers."""

import math

import torch
from torch import Tensor, nn

from .config import NetworkConfig
from .unet import UNet

WAVES = 16


class GuidedUNet(UNet):
    """The U-Net, conditioned on w beside timestep and class. Untrained, it predicts the same at every w."""

    learned_later = ("strength.",)  # `--init` may name weights of a network without w, which lack these

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, image_shape, num_classes)
        self.strength = nn.Linear(2 * WAVES, 4 * config.channels)
        self.forget_guidance()

    def forget_guidance(self) -> None:
        """Predict at every w what the U-Net inside predicts."""
        nn.init.zeros_(self.strength.weight)
        nn.init.zeros_(self.strength.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """As `UNet.forward`, guided by w (B,); without it, w = 1."""
        w = torch.ones_like(t) if w is None else w
        return self.answer(x, self.embed(t, label) + self.strength(guidance_embedding(w)))


def guidance_embedding(w: Tensor) -> Tensor:
    """Waves of ln w, all of them 0 at w = 1: (B,) -> (B, 2 WAVES)."""
    orders = torch.arange(1, WAVES + 1, device=w.device, dtype=torch.float32)
    # The longest wave spans w = 0.5 .. 9.
    angles = w.float().clamp(min=0.5).log()[:, None] * orders * (math.pi / 2.2)  # (B, WAVES)
    return torch.cat([angles.cos() - 1, angles.sin()], dim=1)
