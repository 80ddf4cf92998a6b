"""All engines, in one table: how each is opened, what it needs installed, its precisions, and how it is certified.

A new engine is one file and one entry in `ENGINES`. Its library is imported when the engine is opened, not before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, util

from . import engine_openvino, engine_ort, engine_tensorrt
from .bundle import Bundle, Variant
from .engine import OpenedEngine
from .sidecar import BuiltEngine, engines_beside, graph_digest

REFERENCE = ("cpu", "float32")  # engine and precision that all others are compared with


@dataclass(frozen=True)
class EngineEntry:
    """One engine. Opening it raises `Failure` where it is not available on this machine.

    Attributes:
        open: (bundle, precision, threads, uncertified) -> the engine. `uncertified` also accepts a built engine that
            did not pass `cfgdiff verify`; engines that run the bundle's graphs ignore it.
        title: its name in messages.
        packages: on PyPI, any of which brings it.
        on_cpu: it runs on the CPU. "auto" times such engines and opens them at a precision by its name.
        module: what must be importable before a CPU engine is timed; empty: it always is.
        own_precisions: precisions that it computes a variant of the bundle in, by the variant's name.
        open_built: (bundle, built engine, uncertified) -> the engine, for one that runs engines built beside the
            bundle, each of which has its certificate in its sidecar. None: it runs the bundle's graphs.
        certifies: its certificates of variants are stored in bundle.json; those of others are only shown.
    """

    open: Callable[[Bundle, str, int | None, bool], OpenedEngine]
    title: str
    packages: tuple[str, ...]
    on_cpu: bool = False
    module: str = ""
    own_precisions: Mapping[str, str] = field(default_factory=dict)
    open_built: Callable[[Bundle, BuiltEngine, bool], OpenedEngine] | None = None
    certifies: bool = False


def _runs_graphs(open_graph: Callable[[Bundle, str, int | None], OpenedEngine]) -> Callable[..., OpenedEngine]:
    return lambda bundle, precision, threads, uncertified: open_graph(bundle, precision, threads)


# In the order in which "auto" tries them where nothing was timed.
ENGINES = {
    "tensorrt": EngineEntry(
        engine_tensorrt.TensorRTEngine, "TensorRT", ("tensorrt-rtx", "tensorrt"), open_built=engine_tensorrt.open_built
    ),
    "cuda": EngineEntry(_runs_graphs(engine_ort.open_cuda), "ONNX Runtime on a GPU", ("onnxruntime-gpu",)),
    "cpu": EngineEntry(
        _runs_graphs(engine_ort.OrtEngine),
        "ONNX Runtime",
        ("onnxruntime", "onnxruntime-gpu"),
        on_cpu=True,
        certifies=True,
    ),
    "openvino": EngineEntry(
        _runs_graphs(engine_openvino.OpenVinoEngine),
        "OpenVINO",
        ("openvino",),
        on_cpu=True,
        module="openvino",
        own_precisions=engine_openvino.OWN_PRECISIONS,
    ),
}


@dataclass(frozen=True)
class Target:
    """What can be opened and certified of a bundle: an engine at a precision, or an engine built beside the bundle.

    Attributes:
        name: in lists and reports.
        own: it is a variant or a built engine of the bundle, not an engine's own way to compute a variant.
        sha256: of the graph or the built engine, for the certificate.
        open: (uncertified) -> the engine; raises `Failure`.
        built: the engine beside the bundle.
    """

    engine: str
    precision: str
    name: str
    own: bool
    sha256: str
    open: Callable[[bool], OpenedEngine]
    built: BuiltEngine | None = None


def targets(name: str, bundle: Bundle, threads: int | None = None) -> list[Target]:
    """What an engine can open of a bundle. Raises `Failure` for a sidecar that cannot be read."""
    open_built = ENGINES[name].open_built
    if open_built is None:
        return [
            Target(
                name, precision, f"{name} {precision}", precision in bundle.variants,
                graph_digest(computed_variant(bundle, precision)), partial(open_at, name, bundle, precision, threads),
            )
            for precision in precisions(name, bundle)
        ]  # fmt: skip
    return [
        Target(
            name, built.key.precision, built.path.name, True, built.sha256, partial(open_built, bundle, built), built
        )
        for built in engines_beside(bundle.path)
    ]


def open_at(
    name: str, bundle: Bundle, precision: str, threads: int | None = None, uncertified: bool = False
) -> OpenedEngine:
    """This engine and no other. Raises `Failure` where it is not available here."""
    return ENGINES[name].open(bundle, precision, threads, uncertified)


def precisions(name: str, bundle: Bundle) -> list[str]:
    """What `open_engine` accepts for this engine: the bundle's variants, and the engine's own precisions."""
    return [*bundle.variants, *(p for p in ENGINES[name].own_precisions if p not in bundle.variants)]


def computed_variant(bundle: Bundle, precision: str) -> Variant:
    """The variant whose graph is computed at a precision: that of its name, or that of an `own_precisions`."""
    own = {own: variant for entry in ENGINES.values() for own, variant in entry.own_precisions.items()}
    return bundle.variant(precision if precision in bundle.variants else own.get(precision, precision))


def cpu_engines() -> list[str]:
    """The engines that run on a CPU, installed or not, the one of `REFERENCE` first."""
    return sorted((name for name, entry in ENGINES.items() if entry.on_cpu), key=lambda name: name != REFERENCE[0])


def ways_on_cpu(bundle: Bundle) -> list[tuple[str, str]]:
    """(engine, precision) of everything installed that may compute a bundle on a CPU, `REFERENCE` first.

    float16 is left out: CPUs compute it in float32, after a detour.
    """
    installed = [n for n in cpu_engines() if not ENGINES[n].module or util.find_spec(ENGINES[n].module) is not None]
    return [(name, p) for name in installed for p in precisions(name, bundle) if p != "float16"]


def package(name: str) -> str:
    """What is installed for an engine and its version, as onnxruntime 1.20; empty where nothing is."""
    for candidate in ENGINES[name].packages:
        try:
            return f"{candidate} {metadata.version(candidate)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def own_version() -> str:
    """The version of cfgdiff; empty where it runs from its source."""
    try:
        return metadata.version("cfgdiff")
    except metadata.PackageNotFoundError:
        return ""
