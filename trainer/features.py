"""A distance of pictures as a trained network sees them, to train on: it does not prefer blurred ones."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.errors import Failure

SIZE = 64  # at 32x32, AlexNet's last three convolutions see one position
# Of pictures in -1 .. 1: the scaling layer of LPIPS (Zhang et al. 2018), which is ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class AlexNetFeatures(nn.Module):
    """AlexNet's five convolutions after each ReLU, divided by their length over the channels, as in LPIPS."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        from torchvision.models import alexnet

        self.layers = alexnet(weights=None).features
        self.layers.load_state_dict(
            {n.removeprefix("features."): w for n, w in weights.items() if n.startswith("features.")}
        )
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> five tensors (B, C, H', W') whose vectors of C have length 1."""
        x, seen = (
            F.interpolate(
                (pictures - self.shift) / self.scale, size=(SIZE, SIZE), mode="bilinear", align_corners=False
            ),
            [],
        )
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                seen.append(x.float() / (x.float().square().sum(1, keepdim=True) + 1e-8).sqrt())
        return seen


@cache
def _alexnet(path: str, device: str) -> AlexNetFeatures:
    if path:
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except Exception as error:  # safetensors raises its own kinds
            raise Failure(
                f"features {path}: not readable as safetensors ({error}); give AlexNet's convolutions"
            ) from None
    else:
        from torchvision.models import AlexNet_Weights

        try:
            weights = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a damaged download
            remedy = "connect once, or give them as features: FILE in objective.options, or set feature_weight: 0 there"
            raise Failure(
                f"objective.options: torchvision's AlexNet weights cannot be fetched ({error}); {remedy}"
            ) from None
    return AlexNetFeatures(weights).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def feature_distance(path: str, pictures: Tensor, targets: Tensor) -> Tensor:
    """The distance |a - b|^2 of AlexNet's activations: summed over channels and layers, averaged over the rest.

    This is LPIPS with all weights 1. `path` is a file of AlexNet's convolutions; without one torchvision fetches them.
    """
    network = _alexnet(path, str(pictures.device))
    with torch.no_grad():
        wanted = network(targets.clamp(-1, 1))
    clamped = pictures + (pictures.clamp(-1, 1) - pictures).detach()  # its gradient also pulls back from outside
    pairs = zip(network(clamped), wanted, strict=True)
    return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()
