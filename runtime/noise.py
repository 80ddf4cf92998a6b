"""Noise that depends on (seed, picture index, step) alone: not on batch size, order, engine or NumPy's version.

Philox (Salmon et al. 2011) is a counter-based generator with a fixed definition; only its raw 64-bit words are taken from
NumPy, and the normals are made here by Box and Muller's transform, since NumPy's own streams may change.
"""

from math import prod

import numpy as np


def normals(seed: int, indices: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normals for pictures `indices` of run `seed` at `step` (0 is the initial latent).

    Args:
        seed: 0 .. 2^64 - 1.
        indices: picture numbers, (B,) int, >= 0.
        step: >= 0.
        shape: of one picture, (C, H, W).

    Returns:
        (B, C, H, W) float32.
    """
    n = prod(shape)
    out = np.empty((len(indices), n), np.float32)
    for row, index in enumerate(indices):
        words = np.random.Philox(key=[seed, int(index)], counter=[0, 0, 0, step]).random_raw(n + n % 2)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1), 53 bits
        radius = np.sqrt(-2 * np.log1p(-uniform[0::2]))
        angle = 2 * np.pi * uniform[1::2]
        out[row] = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:n]
    return out.reshape(len(indices), *shape)
