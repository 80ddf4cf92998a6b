"""The engine seam: one method between the sampling loop and whatever runs the graph on this machine.

A new engine is one opener in `OPENERS`. Engines and what they need are imported by their openers, not before. Which engine a user
gets is decided in choose.py.
"""

import logging
from collections.abc import Callable
from importlib import metadata, util
from typing import Protocol, TypeVar

import numpy as np

from .bundle import Bundle
from .errors import Failure
from .sidecar import graph_digest

log = logging.getLogger("cfgdiff")
Opened = TypeVar("Opened", bound="OpenedEngine")


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


class OpenedEngine(Engine):
    """What the engines here have beside `Engine`: `with` closes them at its end, and a closed one says so."""

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
    """An engine around another one. It passes everything on; a subclass overrides `predict` to count, record or change calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.precision, self.max_batch = engine.name, engine.precision, engine.max_batch

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        return self.engine.predict(sample, timestep, class_label, guidance)

    def close(self) -> None:
        """Close the engine inside."""
        self.engine.close()


def _tensorrt(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> OpenedEngine:
    from .engine_tensorrt import TensorRTEngine

    return TensorRTEngine(bundle, precision, threads, uncertified)


def _cuda(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> OpenedEngine:
    from .engine_ort import CudaEngine

    if precision != "auto":
        return CudaEngine(bundle, precision, threads)
    against = _against_float16(bundle)
    opened = CudaEngine(bundle, "float32" if against else "float16", threads)
    log.info("cuda: %s", f"float32, because {against}" if against else "float16, the fastest, because it is certified")
    return opened


def _cpu(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> OpenedEngine:
    from .engine_ort import OrtEngine

    return OrtEngine(bundle, precision, threads)


def _openvino(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> OpenedEngine:
    from .engine_openvino import OpenVinoEngine

    return OpenVinoEngine(bundle, precision, threads)


def _against_float16(bundle: Bundle) -> str | None:
    """What speaks against float16 where nobody asked for it; None where its pictures are certified to be float32's."""
    if "float16" not in bundle.variants:
        return "the bundle has no float16 variant (cfgdiff export --fp16 adds one)"
    variant = bundle.variants["float16"]
    certificate = variant.certificate or {}
    if certificate.get("sha256") != graph_digest(variant):
        return f"float16 has no certificate (cfgdiff verify {bundle.path} makes one)"
    return None if certificate["passed"] else "float16 failed its verification"


# In the order in which they are tried where nothing is measured. Those for CPUs are always asked for a precision by its name.
OPENERS: dict[str, Callable[[Bundle, str, int | None, bool], OpenedEngine]] = {
    "tensorrt": _tensorrt, "cuda": _cuda, "cpu": _cpu, "openvino": _openvino,
}  # fmt: skip
ON_CPU = ("cpu", "openvino")
PACKAGES = {
    "tensorrt": ("tensorrt-rtx", "tensorrt"), "cuda": ("onnxruntime-gpu",), "cpu": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
}  # fmt: skip


def precisions(name: str, bundle: Bundle) -> list[str]:
    """What `open_engine` may be asked for with this engine: the bundle's variants, and ways of its own to compute them."""
    return [*bundle.variants, *(["bfloat16"] if name == "openvino" else [])]


def open_at(name: str, bundle: Bundle, precision: str, threads: int | None = None, uncertified: bool = False) -> OpenedEngine:
    """This engine and no other. Raises `Failure` where it is not available here."""
    return OPENERS[name](bundle, precision, threads, uncertified)


def ways_on_cpu(bundle: Bundle) -> list[tuple[str, str]]:
    """(engine, precision) of all that may compute a bundle on a CPU with what is installed, float32 on ONNX Runtime first.

    float16 is left out: CPUs compute it in float32, after a detour.
    """
    names = [name for name in ON_CPU if name in OPENERS and (name == "cpu" or util.find_spec(name) is not None)]
    return [(name, precision) for name in names for precision in precisions(name, bundle) if precision != "float16"]


def package(name: str) -> str:
    """What is installed for an engine and its version, as onnxruntime 1.20; empty where nothing is."""
    for candidate in PACKAGES[name]:
        try:
            return f"{candidate} {metadata.version(candidate)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def own_version() -> str:
    """That of cfgdiff; empty where it is run from its source."""
    try:
        return metadata.version("cfgdiff")
    except metadata.PackageNotFoundError:
        return ""
