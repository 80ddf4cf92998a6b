"""Counts the rows of the network that engines compute: what pictures cost, whatever the engine and the machine."""

from dataclasses import dataclass, replace

import numpy as np

from .bundle import Bundle, Model
from .cascade import Cascade
from .engine import Engine, WrappedEngine
from .generate import sample
from .plan import resolve
from .request import Request


class CountingEngine(WrappedEngine):
    """Counts the rows of the network that the engine inside computes."""

    def __init__(self, engine: Engine, bundle: Model) -> None:
        super().__init__(engine)
        self.rows, self._bundle = 0, bundle

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`."""
        self.rows += self._bundle.rows(len(sample), len(guidance))
        return super().predict(sample, timestep, class_label, guidance, *condition)


def counting(bundle: Bundle, engine: Engine) -> tuple[Engine, list[CountingEngine]]:
    """An engine of a bundle, or of a cascade, that counts; and the counter of each network, the base first."""
    engines = (engine.engine, *engine.stages) if isinstance(engine, Cascade) else (engine,)
    counters = [CountingEngine(each, model) for each, model in zip(engines, bundle.models, strict=True)]
    return Cascade(counters) if len(counters) > 1 else counters[0], counters


@dataclass(frozen=True)
class Cost:
    """What a picture takes: rows of each network, the base first, and billions of multiply-adds in all of them.

    `gmac` is None where the export of a network did not record what a row takes.
    """

    rows: list[int]
    gmac: float | None


def cost_of(bundle: Bundle, engine: Engine, request: Request) -> Cost:
    """What a picture takes at the settings of a request: one is drawn."""
    engine, counters = counting(bundle, engine)
    for _ in sample(engine, resolve(bundle, replace(request, classes=[0], indices=None, batch=1))):
        pass
    known = [
        counter.rows * model.gmac
        for counter, model in zip(counters, bundle.models, strict=True)
        if model.gmac is not None
    ]
    return Cost([counter.rows for counter in counters], sum(known) if len(known) == len(counters) else None)
