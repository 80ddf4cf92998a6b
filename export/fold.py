"""The network that is exported: it predicts with and without the class in one batch and guides, or takes w itself."""

import torch
from torch import Tensor, nn

from cfgdiff.trainer.guided import GuidedUNet
from cfgdiff.trainer.super_resolution import SuperResolutionUNet


class GuidedNetwork(nn.Module):
    """`network` with the conditional and the unconditional pass folded into one batch (Ho & Salimans 2022, equation 6).

    Args:
        network: `(x, t, label) -> prediction`, with label `null_class` for no class.
        null_class: K.
    """

    def __init__(self, network: nn.Module, null_class: int) -> None:
        super().__init__()
        self.network, self.null_class = network, null_class

    def forward(self, sample: Tensor, timestep: Tensor, class_label: Tensor, guidance: Tensor) -> Tensor:
        """The prediction, guided in its first G rows.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: (B,).
            class_label: (B,) int64.
            guidance: w, (G,), 0 <= G <= B; w = 1 is plain conditional.

        Returns:
            (B, C, H, W).
        """
        return self._folded(sample, timestep, class_label, guidance)

    def _folded(
        self, sample: Tensor, timestep: Tensor, class_label: Tensor, guidance: Tensor, *condition: Tensor
    ) -> Tensor:
        b, g = sample.shape[0], guidance.shape[0]
        torch._check(g <= b)
        null = torch.full_like(class_label[:g], self.null_class)  # (G,)
        both = self.network(  # (B + G, C, H, W)
            torch.cat([sample, sample[:g]]), torch.cat([timestep, timestep[:g]]), torch.cat([class_label, null]),
            *(torch.cat([value, value[:g]]) for value in condition),
        )  # fmt: skip
        cond, uncond = both[:g], both[b:]  # (G, C, H, W) each
        guided = uncond + guidance[:, None, None, None] * (cond - uncond)
        return torch.cat([guided, both[g:b]])


class FoldedNetwork(nn.Module):
    """A `network`, `(x, t, label, w) -> prediction`, whose input w is (`trainer.guided`), behind the same inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, class_label: Tensor, guidance: Tensor) -> Tensor:
        """As `GuidedNetwork.forward`, at one row a picture; rows from G on have w = 1."""
        g = guidance.shape[0]
        torch._check(g <= sample.shape[0])
        w = torch.cat([guidance, torch.ones_like(timestep[g:])])  # (B,)
        prediction: Tensor = self.network(sample, timestep, class_label, w)
        return prediction


class GuidedStage(GuidedNetwork):
    """A super-resolution `network`, `(x, t, label, condition, condition_noise) -> prediction`, guided as others are.

    Both of its rows see the smaller picture: guidance is towards the class.
    """

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, class_label: Tensor, guidance: Tensor, condition: Tensor,
        condition_noise: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `GuidedNetwork.forward`; see `runtime.upscale.condition` for the condition (B, C, H, W), and (B,)."""
        return self._folded(sample, timestep, class_label, guidance, condition, condition_noise)


def exported(network: nn.Module, null_class: int) -> nn.Module:
    """The network behind the graph's inputs, guided by itself where it can."""
    if isinstance(network, GuidedUNet):
        return FoldedNetwork(network)
    return (GuidedStage if takes_condition(network) else GuidedNetwork)(network, null_class)


def takes_condition(network: nn.Module) -> bool:
    """Whether it is that of a super-resolution stage."""
    return isinstance(network, SuperResolutionUNet)
