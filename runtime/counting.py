"""Counts the rows of the network that engines compute: what pictures cost, whatever the engine and the machine."""

import numpy as np

from .bundle import Bundle, Model
from .cascade import Cascade
from .engine import Engine, WrappedEngine


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
