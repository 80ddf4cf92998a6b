"""The random numbers of a step. A picture's numbers depend on the seed, the step and its place in the batch alone.

So a batch divided into parts, on one device or over many processes, gets the same noise. A GPU draws normal numbers
itself, different from a CPU's: drawing them on the CPU, one picture at a time, would take longer than the network.
"""

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Draws for rows `first` .. `first + count - 1` of a batch of `total`, the same for any division into parts."""

    def __init__(
        self, seed: int, step: int, total: int, first: int = 0, count: int | None = None, device: str = "cpu"
    ) -> None:
        self.step = step
        self._key, self._calls, self._total, self._device = (seed, step), 0, total, device
        self._rows = slice(first, total if count is None else first + count)

    def _seeds(self, n: int) -> np.ndarray:
        """(n,) independent seeds of this call."""
        self._calls += 1
        return np.random.SeedSequence([*self._key, self._calls]).generate_state(n)

    def uniform(self) -> Tensor:
        """(count,) float64 in [0, 1)."""
        generator = torch.Generator().manual_seed(int(self._seeds(1)[0]))
        return torch.rand(self._total, generator=generator, dtype=torch.float64)[self._rows]

    def quantiles(self) -> Tensor:
        """(count,) float64 in [0, 1): one of each `total`-th, in order."""
        return (torch.arange(self._total)[self._rows] + self.uniform()) / self._total

    def normal(self, shape: "tuple[int, ...] | torch.Size") -> Tensor:
        """(count, *shape) float32, standard normal, on the device."""
        if self._device != "cpu":
            drawn = torch.Generator(self._device).manual_seed(int(self._seeds(1)[0]))
            return torch.randn((self._total, *shape), generator=drawn, device=self._device)[self._rows]
        seeds, generator = self._seeds(self._rows.stop)[self._rows], torch.Generator()
        return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds.tolist()])
