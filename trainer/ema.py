"""The exponential moving average of the weights, the ones that are exported."""

import copy

import torch
from torch import nn

from .distributed import local


class EMA:
    """A running average of a network's parameters; the decay of step n is min(decay, (1 + n) / (10 + n))."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(local(self.network.parameters()), local(network.parameters()), 1 - decay)
