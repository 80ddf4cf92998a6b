"""The engine seam: one method between the sampling loop and whatever runs the graph on this machine.

A new engine is one opener in `OPENERS`; the first that works in that order is taken by "auto".
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np

from .bundle import Bundle
from .errors import BadInput, Failure, nearest

log = logging.getLogger("cfgdiff")


class Engine(Protocol):
    """Runs the guided graph."""

    name: str
    precision: str
    max_batch: int

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """The network's answer.

        Args:
            sample: x_t, (B, C, H, W) float32.
            timestep: t of each row, (B,) float32.
            class_label: 0 .. K-1, (B,) int64.
            guidance: w of the first G rows, (G,) float32, 0 <= G <= B.

        Returns:
            eps or v, (B, C, H, W) float32, guided in rows 0 .. G-1.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def _tensorrt(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Engine:
    from .engine_tensorrt import TensorRTEngine

    return TensorRTEngine(bundle, precision, threads, uncertified)


def _cpu(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Engine:
    from .engine_ort import OrtEngine

    return OrtEngine(bundle, precision, threads)


OPENERS: dict[str, Callable[[Bundle, str, int | None, bool], Engine]] = {"tensorrt": _tensorrt, "cpu": _cpu}


def open_engine(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int | None = None, uncertified: bool = False
) -> Engine:  # fmt: skip
    """Open an engine for a bundle.

    Args:
        engine: a name in `OPENERS`, or "auto" for the first of them that works here; a named one is never replaced by another.
        precision: a variant of the bundle, or "auto" for float32.
        threads: CPU threads; None leaves it to the engine.
        uncertified: take a TensorRT engine that `cfgdiff verify` did not pass, too.

    Raises:
        BadInput: an unknown engine or precision.
        Failure: the engine cannot be had here.
    """
    if engine not in ("auto", *OPENERS):
        choices = ["auto", *OPENERS]
        raise BadInput(f"--engine: no engine '{engine}'; choose from {', '.join(choices)}{nearest(engine, choices)}")
    wanted = "float32" if precision == "auto" else precision
    bundle.variant(wanted)
    reasons = []
    for name in OPENERS if engine == "auto" else [engine]:
        try:
            opened = OPENERS[name](bundle, wanted, threads, uncertified)
        except Failure as error:
            if engine != "auto":
                raise
            reasons.append(f"{name}: {error}")
            log.info("engine %s passed over: %s", name, error)
        else:
            log.info("engine %s, %s", opened.name, opened.precision)
            return opened
    raise Failure("no engine works here: " + "; ".join(reasons))
