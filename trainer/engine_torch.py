"""An engine that runs a network in PyTorch: for previews, and to compare exports with."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cfgdiff.runtime.engine import OpenedEngine


class TorchEngine(OpenedEngine):
    """See `cfgdiff.runtime.Engine`.

    Args:
        predict: (x_t, t, label) -> the prediction, for (B, C, H, W) float32, (B,) float32 and (B,) int64 on the CPU.
            It takes w (B,) as well where `takes_w`; else guided rows take two passes. The network of a
            super-resolution stage also takes the condition (B, C, H, W) and its noise (B,).
        null_class: the label K.
    """

    name, precision, max_batch = "pytorch", "float32", 4096

    def __init__(self, predict: Callable[..., Tensor], null_class: int, takes_w: bool = False) -> None:
        self._predict, self._null_class, self._takes_w = predict, null_class, takes_w

    @torch.no_grad()
    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`; guided rows are uncond + w (cond - uncond) (Ho & Salimans 2022; w = 1 is unguided)."""
        self.check_open()
        x, t, label = (torch.from_numpy(a) for a in (sample, timestep, class_label))
        if self._takes_w:
            w = torch.cat([torch.from_numpy(guidance), torch.ones(len(x) - len(guidance))])
            folded: np.ndarray = self._predict(x, t, label, w).numpy()
            return folded
        further = [torch.from_numpy(a) for a in condition]
        prediction = self._predict(x, t, label, *further)
        if g := len(guidance):
            null = torch.full((g,), self._null_class)
            uncond = self._predict(x[:g], t[:g], null, *(a[:g] for a in further))
            prediction[:g] = uncond + torch.from_numpy(guidance)[:, None, None, None] * (prediction[:g] - uncond)
        array: np.ndarray = prediction.numpy()
        return array

    def close(self) -> None:
        """Nothing to release; `predict` raises from now on."""
        self.closed = True
