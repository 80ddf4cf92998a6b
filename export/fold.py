"""Classifier-free guidance inside the network: the one place where it stands."""

import torch
from torch import Tensor, nn


class GuidedNetwork(nn.Module):
    """`network` with the conditional and the unconditional pass folded into one batch (Ho & Salimans 2022, equation 6).

    Args:
        network: `(x, t, label) -> prediction`, with the label `null_class` for none.
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
        b, g = sample.shape[0], guidance.shape[0]
        torch._check(g <= b)
        null = torch.full_like(class_label[:g], self.null_class)  # (G,)
        answer = self.network(  # (B + G, C, H, W)
            torch.cat([sample, sample[:g]]), torch.cat([timestep, timestep[:g]]), torch.cat([class_label, null])
        )
        cond, uncond = answer[:g], answer[b:]  # (G, C, H, W) each
        guided = uncond + guidance[:, None, None, None] * (cond - uncond)
        return torch.cat([guided, answer[g:b]])
