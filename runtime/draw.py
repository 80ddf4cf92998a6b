"""Pictures in one call, for who needs neither batches as they finish nor an engine of their own choice."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bundle import Bundle
from .choose import open_engine
from .engine import Engine
from .errors import whole
from .generate import BATCH, class_labels, generate
from .plan import make_plan

PLANNED = ("sampler", "steps", "guidance", "spacing", "timesteps", "eta", "interval", "rescale", "threshold")


def draw(bundle: Bundle, classes: Sequence[str | int] | np.ndarray, engine: Engine | None = None, **settings: Any) -> np.ndarray:
    """Draw one picture for each entry of `classes`.

    Args:
        bundle: the model.
        classes: names or numbers, N of them.
        engine: an open one, which stays open; None: that of `open_engine`, opened for this call and closed. Open one for several calls.
        settings: those of `generate`, as steps, guidance, seed and sampler.

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
    if engine is None:
        n = whole("--n", len(class_labels(bundle, classes)))
        edit, batch = settings.get("edit"), whole("--batch", settings.get("batch", BATCH))
        planned = {name: settings[name] for name in PLANNED if name in settings}
        plan = make_plan(bundle, **planned, strength=edit.strength if edit else 1.0)
        with open_engine(bundle, rows=plan.rows(n), batch=min(n, batch)) as opened:
            return draw(bundle, classes, opened, **settings)
    return np.concatenate([pictures for _, pictures in generate(engine, bundle, classes, **settings)])
