"""Augmentation that does not leak into what is generated (Karras et al. 2022, EDM, appendix F.2).

Pictures are transformed, and the network sees how, as a vector of eight numbers; it generates with that vector at zero.
Two parts work together: `--set network.name=augmented-unet --set objective.name=augmented`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule

from .config import NetworkConfig, ObjectiveConfig
from .draws import Draws
from .objective import WithInputs, loss
from .unet import UNet

# y-flip; log2 of the scale; cos - 1 and sin of the rotation; stretch along x and y; translation along x and y
LABELS = 8
SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125  # deviations: of log2, of log2, and of the shift in picture sizes


def draw_labels(draws: Draws, probability: float) -> Tensor:
    """(B, 8) float32: each kind of transform is drawn with `probability`, and zero otherwise."""

    def maybe(values: Tensor) -> Tensor:
        drawn = draws.uniform() < probability
        return torch.where(drawn.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)

    flip = maybe((draws.uniform() < 0.5).float())
    scale = maybe(SCALE * draws.normal((1,)))
    angle = maybe((2 * draws.uniform().float() - 1) * math.pi)
    direction = (2 * draws.uniform().float()[:, None] - 1) * math.pi
    stretch = maybe(STRETCH * draws.normal((1,)) * torch.cat([direction.cos(), direction.sin()], dim=1))
    shift = maybe(SHIFT * draws.normal((2,)))
    return torch.cat([flip[:, None], scale, angle.cos()[:, None] - 1, angle.sin()[:, None], stretch, shift], dim=1)


def transform(pictures: Tensor, labels: Tensor) -> Tensor:
    """Pictures (B, C, H, W) transformed by labels (B, 8): bicubic, mirrored at the border; zeros change nothing."""
    flip, scale, cos, sin, stretch_x, stretch_y, shift_x, shift_y = labels.unbind(dim=1)
    cos, zero = cos + 1, torch.zeros_like(cos)
    length = torch.hypot(stretch_x, stretch_y)
    direction = torch.atan2(stretch_y, stretch_x) / 2  # a stretch along d is one along -d
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (B, 2, 2)
    c, s = direction.cos(), direction.sin()
    axes = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    stretch = axes @ torch.diag_embed(torch.stack([2.0**length, 2.0**-length], 1)) @ axes.mT
    mirror = torch.diag_embed(torch.stack([zero + 1, 1 - 2 * flip], 1))
    forward = rotation @ stretch @ mirror * (2.0**scale)[:, None, None]  # where a point of the picture goes
    back = torch.linalg.inv(forward)
    shift = 2 * torch.stack([shift_x, shift_y], 1)[:, :, None]  # a picture is 2 wide in the grid's units
    grid = F.affine_grid(torch.cat([back, -back @ shift], dim=2), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
    return torch.where((labels == 0).all(dim=1)[:, None, None, None], pictures, moved)


class AugmentedUNet(UNet):
    """The U-Net with the transform of its picture as an input, zero when it generates. For `augmented`."""

    learned_later = ("augment.",)  # `--init` may name weights of a network without it

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(config, image_shape, num_classes)
        self.augment = nn.Linear(LABELS, 4 * config.channels, bias=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor, augment: Tensor | None = None) -> Tensor:
        """As `UNet.forward`; `augment` is (B, 8), or None for untransformed pictures."""
        embedding = self.embed(t, label)
        return self.answer(x, embedding if augment is None else embedding + self.augment(augment))


def augmented_loss(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor,
                   null_class: int, draws: Draws, *, probability: float = 0.12) -> Tensor:  # fmt: skip
    """The loss on transformed pictures, for `augmented-unet`; each transform has `probability` (EDM: 12 %)."""
    augment = draw_labels(draws, probability).to(pictures.device)
    moved = transform(pictures, augment)
    return loss(WithInputs(network, augment), config, schedule, moved, labels, null_class, draws)
