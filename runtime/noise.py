"""Noise that depends on (seed, picture index, stage, step) alone: not on batch size, order, engine or NumPy's version.

Philox (Salmon et al. 2011) is a counter-based generator with a fixed definition. Only its raw 64-bit words come from
NumPy: the normals are made here, by Box and Muller's transform, because NumPy's own streams may change.
"""

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from .errors import BadInput

CONDITION = 2**63  # the step of the noise on a super-resolution stage's smaller picture; samplers count from 0


def normals(
    seed: int | np.ndarray, indices: np.ndarray, step: int, shape: tuple[int, ...], stage: int = 0
) -> np.ndarray:
    """Standard normals for pictures `indices` of run `seed` at `step` (0 is the initial latent).

    Args:
        seed: 0 .. 2^64 - 1, one, or one for each picture, (B,).
        indices: picture numbers, (B,) int, 0 .. 2^64 - 1.
        step: >= 0.
        shape: of one picture, (C, H, W).
        stage: of a cascade, 0 being its base. It is a word of the counter of its own, so stages share no noise.

    Returns:
        (B, C, H, W) float32.
    """
    n = prod(shape)
    out = np.empty((len(indices), n), np.float32)
    # From a list with a number of 2^63 or more, Philox makes float64, of 53 bits. An array of uint64 stays as it is.
    pairs = np.stack(
        [np.broadcast_to(np.asarray(seed, np.uint64), len(indices)), np.asarray(indices).astype(np.uint64)], axis=1
    )
    for row, key in enumerate(pairs):
        words = np.random.Philox(key=key, counter=[0, 0, stage, step]).random_raw(n + n % 2)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1), 53 bits
        radius = np.sqrt(-2 * np.log1p(-uniform[0::2]))
        angle = 2 * np.pi * uniform[1::2]
        out[row] = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:n]
    return out.reshape(len(indices), *shape)


def keys(name: str, numbers: Any, n: int) -> np.ndarray:
    """Seeds or picture numbers for `normals`: one for all of n pictures, or one for each. (n,) uint64.

    Raises:
        BadInput: naming `name`, for another count than n, and for what is not a whole number of 0 .. 2^64 - 1.
    """
    each = isinstance(numbers, Sequence | np.ndarray) and not isinstance(numbers, str) and np.ndim(numbers) > 0
    given = list(numbers) if each else [numbers]
    if each and len(given) != n:
        raise BadInput(f"{name}: expected {n} numbers, one for each class, found {len(given)}")
    for number in given:
        try:
            right = 0 <= operator.index(number) < 2**64
        except TypeError:
            right = False
        if not right:
            raise BadInput(f"{name}: expected 0 .. 2^64 - 1, a whole number, found {number!r:.60}")
    return np.broadcast_to(np.array([int(number) for number in given], np.uint64), n)
