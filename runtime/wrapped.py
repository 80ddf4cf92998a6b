"""An engine around another one: to count its calls, to record or time them, or to make them in another way."""

from collections.abc import Callable

import numpy as np

from .engine import Engine

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Wrapped:
    """An engine with the name and limits of another and a `predict` of its own. Closing it leaves the other open."""

    def __init__(self, engine: Engine, predict: Predict) -> None:
        self.name, self.precision, self.max_batch, self.predict = engine.name, engine.precision, engine.max_batch, predict

    def close(self) -> None:
        """Nothing: who opened the engine inside closes it."""
