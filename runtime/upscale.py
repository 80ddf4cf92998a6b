"""The condition of a super-resolution stage: a smaller picture, noised and enlarged. Arrays and tensors, the same code.

Training makes it of a reduced training picture, sampling of the picture that the stage before has drawn. Noise on it
(conditioning augmentation, Ho et al. 2022, section 4.2, "non-truncated") hides what generated pictures lack: the stage
is trained at random levels of it, knows the level, and keeps of the smaller picture what the noise leaves.
"""

from typing import Any

import numpy as np

from .schedule import Schedule

FACTORS = (2, 4, 8)  # by which a stage may enlarge


def reduced(pictures: Any, factor: int) -> Any:
    """The mean of each `factor` x `factor` pixels: (B, C, H, W) -> (B, C, H / factor, W / factor)."""
    b, c, h, w = pictures.shape
    return pictures.reshape(b, c, h // factor, factor, w // factor, factor).mean((3, 5))


def enlarged(pictures: Any, factor: int) -> Any:
    """Bilinear interpolation, pixels being squares, to twice the size as often as `factor` says: 2, 4 or 8.

    (B, C, H, W) -> (B, C, factor H, factor W). Only indices, products with 1/4 and 3/4, and sums: NumPy and PyTorch
    round alike.
    """
    while factor > 1:
        h, w = pictures.shape[2:]
        (rows, next_rows), (columns, next_columns) = _neighbours(h), _neighbours(w)
        pictures = 0.75 * pictures[:, :, rows] + 0.25 * pictures[:, :, next_rows]
        pictures = 0.75 * pictures[..., columns] + 0.25 * pictures[..., next_columns]
        factor //= 2
    return pictures


def _neighbours(n: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of 2 n new pixels, the old one that it lies in and the next nearest, which ends at the border."""
    own = np.arange(2 * n) // 2
    return own, np.clip(own + np.where(np.arange(2 * n) % 2, 1, -1), 0, n - 1)


def condition(low: Any, eps: Any, noise: Any, schedule: Schedule, factor: int) -> Any:
    """The graph's input `condition`: q(z_s | z), enlarged. (B, C, H, W) -> (B, C, factor H, factor W).

    Args:
        low: z, smaller pictures in [-1, 1].
        eps: standard normal noise, of the same shape.
        noise: s, 0 .. T, one or (B,): the timestep whose noise `low` gets.
    """
    return enlarged(schedule.noised(low / schedule.data_std, eps, noise), factor)
