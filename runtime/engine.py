"""The engine seam: one method between the sampling loop and whatever runs the graph on this machine.

Which engines there are stands in engines.py; which of them a user gets is decided in choose.py.
"""

from typing import Protocol, TypeVar

import numpy as np

from .errors import Failure

Opened = TypeVar("Opened", bound="OpenedEngine")


class Engine(Protocol):
    """Runs the guided graph."""

    name: str
    precision: str
    max_batch: int

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Evaluate the network once.

        Args:
            sample: x_t, (B, C, H, W) float32.
            timestep: t of each row, (B,) float32.
            class_label: 0 .. K-1, (B,) int64.
            guidance: w of the first G rows, (G,) float32, 0 <= G <= B.
            condition: none; but for a super-resolution stage two arrays, the smaller picture, noised and enlarged,
                (B, C, H, W) float32, and the timestep of that noise, (B,) float32 (see `upscale.condition`).

        Returns:
            eps or v, (B, C, H, W) float32, guided in rows 0 .. G-1.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


class OpenedEngine(Engine):
    """An engine of this package: `with` closes it at its end, and a closed one refuses to predict."""

    closed = False

    def check_open(self) -> None:
        """Raises `Failure` where it is closed."""
        if self.closed:
            raise Failure(f"{self.name}: the engine is closed; open it again")

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class WrappedEngine(OpenedEngine):
    """An engine around another one. A subclass overrides `predict` to count, record or change its calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.precision, self.max_batch = engine.name, engine.precision, engine.max_batch

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`."""
        return self.engine.predict(sample, timestep, class_label, guidance, *condition)

    def close(self) -> None:
        """Close the engine inside."""
        self.engine.close()
