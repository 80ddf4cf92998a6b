"""Smaller pictures for a super-resolution stage where none are at hand: to time, compare and certify its engines."""

import numpy as np

from .bundle import Model
from .generate import conditioned, to_uint8
from .noise import normals
from .upscale import enlarged

SEED, CONTRAST = 2**63 + 1, 0.4  # of pictures in [-1, 1]


def example_low(model: Model, n: int) -> np.ndarray | None:
    """n smaller pictures, (n, h, w, C) uint8: noise of every scale, as strong at each, like photographs on average.

    None for a model that enlarges nothing.
    """
    if model.condition is None:
        return None
    c, size = model.image_shape[0], model.image_shape[1] // model.condition.factor
    scales = [size]
    while scales[-1] % 2 == 0:
        scales.append(scales[-1] // 2)
    fields = [enlarged(normals(SEED, np.arange(n), s, (c, s, s)), size // s) for s in scales]
    return to_uint8(CONTRAST * sum(fields, np.zeros_like(fields[0])) / np.sqrt(len(fields) / 2))


def example_inputs(model: Model, n: int) -> tuple[np.ndarray, ...]:
    """The further inputs of `Engine.predict` for n rows; none for a model that enlarges nothing."""
    low, indices = example_low(model, n), np.arange(n)
    return () if low is None else conditioned(model, low, lambda shape, step: normals(SEED, indices, step, shape))
