"""Pictures in one call, for callers who need neither batches as they finish nor an engine of their own choice."""

from typing import Any

import numpy as np

from .bundle import Bundle
from .choose import open_engine
from .engine import Engine
from .generate import Watch, sample
from .plan import resolve
from .request import Classes, Request


def draw(
    bundle: Bundle, classes: Classes, engine: Engine | None = None, *, watch: Watch | None = None, **settings: Any
) -> np.ndarray:
    """Draw one picture for each entry of `classes`.

    Args:
        engine: stays open. None: that of `open_engine`, for this call; open one yourself for several calls.
        watch: see `sample`.
        settings: the other fields of `Request`, as steps, guidance, seed and sampler.

    Returns:
        (N, H, W, C) uint8.

    Raises:
        BadInput: as `generate` does, before an engine is opened.
        Failure: as `generate` and `open_engine` do.

    Example:
        >>> from cfgdiff.runtime import draw, load_bundle, to_images
        >>> pictures = draw(load_bundle(), ["frog"] * 2, steps=4)
        >>> pictures.shape, to_images(pictures)[0].size
        ((2, 32, 32, 3), (32, 32))
    """
    plan = resolve(bundle, Request(classes, **settings))
    if engine is not None:
        return np.concatenate([pictures for _, pictures in sample(engine, plan, watch)])
    with open_engine(bundle, rows=plan.rows, batch=min(len(plan), plan.request.batch)) as opened:
        return np.concatenate([pictures for _, pictures in sample(opened, plan, watch)])
