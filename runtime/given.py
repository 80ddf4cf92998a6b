"""The pictures that a request gives, checked: one to edit, or smaller ones to enlarge."""

import numpy as np

from .bundle import Model
from .errors import BadInput
from .request import Edit, Request


def smaller_pictures(bundle: Model, request: Request, n: int) -> np.ndarray | None:
    """The smaller pictures that a request gives a super-resolution stage, (N, h, w, C) uint8. Raises `BadInput`."""
    known, low, noise = bundle.condition, request.low, request.condition_noise
    if known is None:
        for parameter, given in (("low", low), ("condition_noise", noise)):
            if given is not None:
                raise BadInput(f"{parameter}: {bundle.name} draws from noise alone and enlarges nothing; leave it out")
        return None
    if request.edit is not None:
        raise BadInput(f"edit: {bundle.name} enlarges pictures and edits none; leave it out")
    if noise is not None and not 0 <= noise <= known.most:
        trained = f"{bundle.name} was trained for 0 .. {known.most:g}"
        raise BadInput(f"condition_noise: {trained}, found {noise:g}; take less")
    c, h, w = bundle.image_shape
    expected = (n, h // known.factor, w // known.factor, c)
    if not isinstance(low, np.ndarray) or low.shape != expected or low.dtype != np.uint8:
        found = f"{low.dtype} {low.shape}" if isinstance(low, np.ndarray) else "none"
        raise BadInput(f"low: {bundle.name} enlarges smaller pictures, expected uint8 {expected}, found {found}")
    return low


def edited_picture(bundle: Model, edit: Edit) -> np.ndarray:
    """The picture to edit as x0, (C, H, W) float32. Raises `BadInput`."""
    c, h, w = bundle.image_shape
    expected = (("picture", edit.picture, (h, w, c), np.uint8), ("mask", edit.mask, (h, w), np.bool_))
    for name, array, shape, kind in expected:
        if array is not None and (array.shape != shape or array.dtype != kind):
            raise BadInput(f"edit.{name}: expected {np.dtype(kind)} {shape}, found {array.dtype} {array.shape}")
    return ((edit.picture.transpose(2, 0, 1) / 127.5 - 1) / bundle.schedule.data_std).astype(np.float32)
