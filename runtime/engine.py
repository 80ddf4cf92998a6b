"""The engine seam: one method between the sampling loop and whatever runs the graph on this machine.

A new engine is one opener in `OPENERS`; the first that works in that order is taken by "auto". Engines and what they need are
imported by their openers, not before.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np

from .bundle import Bundle
from .errors import BadInput, Failure, nearest
from .sidecar import graph_digest

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


def _cuda(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Engine:
    from .engine_ort import CudaEngine

    if precision != "auto":
        return CudaEngine(bundle, precision, threads)
    against = _against_float16(bundle)
    opened = CudaEngine(bundle, "float32" if against else "float16", threads)
    log.info("cuda: %s", f"float32, because {against}" if against else "float16, the fastest, because it is certified")
    return opened


def _cpu(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Engine:
    from .engine_ort import OrtEngine

    return OrtEngine(bundle, _or_float32(precision), threads)


def _openvino(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Engine:
    from .engine_openvino import OpenVinoEngine

    return OpenVinoEngine(bundle, _or_float32(precision), threads)


def _or_float32(precision: str) -> str:
    """For CPUs, where "auto" must not change the pictures."""
    return "float32" if precision == "auto" else precision


def _against_float16(bundle: Bundle) -> str | None:
    """What speaks against float16 where nobody asked for it; None where its pictures are certified to be float32's."""
    if "float16" not in bundle.variants:
        return "the bundle has no float16 variant (cfgdiff export --fp16 adds one)"
    variant = bundle.variants["float16"]
    certificate = variant.certificate or {}
    if certificate.get("sha256") != graph_digest(variant):
        return f"float16 has no certificate (cfgdiff verify {bundle.path} makes one)"
    return None if certificate["passed"] else "float16 failed its verification"


# CPU before OpenVINO: as fast (0.87 s against 1.00 s for 64 guided pictures, one thread), always there, and open in 0.5 s, not 1.9 s.
OPENERS: dict[str, Callable[[Bundle, str, int | None, bool], Engine]] = {
    "tensorrt": _tensorrt, "cuda": _cuda, "cpu": _cpu, "openvino": _openvino,
}  # fmt: skip


def precisions(name: str, bundle: Bundle) -> list[str]:
    """What `open_engine` may be asked for with this engine: the bundle's variants, and ways of its own to compute them."""
    return [*bundle.variants, *(["bfloat16"] if name == "openvino" else [])]


def open_engine(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int | None = None, uncertified: bool = False
) -> Engine:  # fmt: skip
    """Open an engine for a bundle.

    Args:
        engine: a name in `OPENERS`, or "auto" for the first of them that works here; a named one is never replaced by another.
        precision: a variant of the bundle; bfloat16, which is OpenVINO's alone; or "auto": on GPUs the fastest one that is certified to
            give float32's pictures, on CPUs float32.
        threads: CPU threads; None leaves it to the engine.
        uncertified: take a TensorRT engine that `cfgdiff verify` did not pass, too.

    Raises:
        BadInput: an unknown engine or precision.
        Failure: the engine cannot be had here.
    """
    if engine not in ("auto", *OPENERS):
        choices = ["auto", *OPENERS]
        raise BadInput(f"--engine: no engine '{engine}'; choose from {', '.join(choices)}{nearest(engine, choices)}")
    names = list(OPENERS) if engine == "auto" else [engine]
    if precision != "auto":
        names = [name for name in names if precision in precisions(name, bundle)]
        if not names:
            bundle.variant(precision)  # says which there are
    reasons = []
    for name in names:
        try:
            opened = OPENERS[name](bundle, precision, threads, uncertified)
        except Failure as error:
            if engine != "auto":
                raise
            reasons.append(f"{name}: {error}")
            log.info("engine %s passed over: %s", name, error)
        else:
            log.info("engine %s, %s", opened.name, opened.precision)
            return opened
    raise Failure("no engine works here: " + "; ".join(reasons))
