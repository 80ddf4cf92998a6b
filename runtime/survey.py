"""What works here: every engine is opened for a bundle at every precision, and closed again. It decides nothing."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from .bundle import Bundle
from .engine import OPENERS, Engine, open_engine, precisions
from .errors import Failure
from .sidecar import BuiltEngine, check_certificate, engines_beside

PACKAGES = {
    "tensorrt": ("tensorrt-rtx", "tensorrt"), "cuda": ("onnxruntime-gpu",), "cpu": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An engine on this machine, for one bundle."""

    engine: str
    package: str
    """What is installed for it and its version, as onnxruntime 1.20; empty where nothing is."""
    precisions: tuple[str, ...]
    """Those that it opens at."""
    remarks: tuple[str, ...]
    """Why it does not at the others and how to change that; the certificates of TensorRT engines."""
    auto: bool
    """Whether `open_engine` takes it where none is named."""


def survey(bundle: Bundle) -> list[Row]:
    """All engines, in the order in which "auto" tries them."""
    try:
        with closing(open_engine(bundle)) as engine:
            taken = engine.name
    except Failure:
        taken = ""
    return [_row(name, bundle, name == taken) for name in OPENERS]


def _row(name: str, bundle: Bundle, auto: bool) -> Row:
    works, remarks = dict[str, None](), dict[str, None]()  # as sets that keep their order
    try:
        for precision, built, opener in _trials(name, bundle):
            try:
                opener().close()
                works[precision], problem = None, ""
            except Failure as error:
                problem = str(error)
            if remark := problem if built is None else _certificate(built, problem):
                remarks[remark] = None
    except Failure as error:  # a sidecar that cannot be read
        remarks[str(error)] = None
    return Row(name, _package(name), tuple(works), tuple(remarks), auto)


def _trials(name: str, bundle: Bundle) -> list[tuple[str, BuiltEngine | None, Callable[[], Engine]]]:
    """What to open: the TensorRT engines beside the bundle, else the engine at each precision."""
    from .engine_tensorrt import TensorRTEngine

    if name != "tensorrt":
        return [(precision, None, partial(open_engine, bundle, name, precision)) for precision in precisions(name, bundle)]
    beside = engines_beside(bundle.path)
    if not beside:
        return [("auto", None, partial(open_engine, bundle, name))]  # fails, and says how to get one
    return [(built.key.precision, built, partial(TensorRTEngine, bundle, built.key.precision, built=built)) for built in beside]


def _certificate(built: BuiltEngine, problem: str) -> str:
    try:
        check_certificate(built)
    except Failure as error:
        return str(error)
    return f"{built.path.name}: certified" + (f"; {problem}" if problem else "")


def _package(name: str) -> str:
    for package in PACKAGES[name]:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return ""
