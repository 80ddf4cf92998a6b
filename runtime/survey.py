"""What works here: every engine is opened for a bundle at every precision, asked once, and closed again, and those for CPUs are timed.

It decides nothing.
"""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from .bundle import Bundle, SpeedRecord
from .choose import open_engine
from .engine import OPENERS, Engine, package, precisions
from .errors import Failure
from .noise import normals
from .processor import processor
from .sidecar import BuiltEngine, check_certificate, engines_beside
from .speeds import REFERENCE, Speed, speeds
from .threads import cores


@dataclass(frozen=True)
class Row:
    """An engine on this machine, for one bundle."""

    engine: str
    package: str
    """What is installed for it and its version, as onnxruntime 1.20; empty where nothing is."""
    precisions: tuple[str, ...]
    """Those that it opens at."""
    remarks: tuple[str, ...]
    """Why it does not at the others and how to change that; the certificates of TensorRT engines; how fast it was elsewhere."""


@dataclass(frozen=True)
class Survey:
    """All engines, in the order of `OPENERS`; the speeds of those for CPUs; and (engine, precision) that "auto" takes for many rows,
    None where none works."""

    rows: list[Row]
    speeds: tuple[Speed, ...]
    taken: tuple[str, str] | None


def survey(bundle: Bundle, threads: int | None = None, anew: bool = False) -> Survey:
    """Look at everything. What was timed before is taken from the cache, unless it is to be measured `anew`."""
    timed = speeds(bundle, threads, anew)
    try:
        with closing(open_engine(bundle, threads=threads)) as engine:
            try_out(engine, bundle)
            taken = engine.name, engine.precision
    except Failure:
        taken = None
    return Survey([_row(name, bundle) for name in OPENERS], timed, taken)


def records(timed: Iterable[Speed], threads: int | None) -> list[SpeedRecord]:
    """For a bundle: how fast the certified engines are, in times the reference, with what decides that of this processor."""
    seconds = {(s.engine, s.precision): s.many for s in timed if s.certified}
    base, here = seconds.pop(REFERENCE, None), processor().notable
    if not base or not here:
        return []
    return [SpeedRecord(here, threads or cores(), *way, round(base / many, 2)) for way, many in seconds.items()]


def try_out(engine: Engine, bundle: Bundle) -> None:
    """Raises `Failure` where an engine that opens does not answer for a guided row of the last class in the middle of the schedule."""
    half, w = np.full(1, bundle.schedule.T / 2, np.float32), np.full(1, 2, np.float32)
    answer = engine.predict(
        normals(0, np.arange(1), 0, bundle.image_shape), half, np.full(1, len(bundle.class_names) - 1), w
    )
    if not np.isfinite(answer).all():
        raise Failure(f"{bundle.path}: the {engine.precision} variant answers with {answer[~np.isfinite(answer)][0]} on {engine.name}; "
                      "export the model again")  # fmt: skip


def _row(name: str, bundle: Bundle) -> Row:
    works, remarks = dict[str, None](), dict[str, None]()  # as sets that keep their order
    try:
        for precision, built, opener in _trials(name, bundle):
            try:
                with closing(opener()) as engine:
                    try_out(engine, bundle)
                works[precision], problem = None, ""
            except Failure as error:
                problem = str(error)
            if remark := problem if built is None else _certificate(built, problem):
                remarks[remark] = None
    except Failure as error:  # nothing to open, or a sidecar that cannot be read
        remarks[str(error)] = None
    installed = package(name)
    if not installed and (elsewhere := _elsewhere(name, bundle)):
        remarks[elsewhere] = None
    return Row(name, installed, tuple(works), tuple(remarks))


def _elsewhere(name: str, bundle: Bundle) -> str:
    """How much faster an engine that is missing here was on a processor that has no instruction more than this one."""
    here = processor().instructions
    fitting = [r for r in bundle.speeds if r.engine == name and r.times > 1 and here.issuperset(r.instructions)]
    if not fitting:
        return ""
    best = max(fitting, key=lambda r: (len(r.instructions), r.times))
    where = f"a processor with {best.instructions[-1]}" if best.instructions else "another processor"
    threads = f"{best.threads} thread{'s' if best.threads > 1 else ''}"
    was = f"{name} {best.precision} was {best.times:.1f} times {' '.join(REFERENCE)} on {where} ({threads})"
    return f"{was}; pip install 'cfgdiff[{name}]'"


def _trials(name: str, bundle: Bundle) -> list[tuple[str, BuiltEngine | None, Callable[[], Engine]]]:
    """What to open: the TensorRT engines beside the bundle, else the engine at each precision."""
    from .engine_tensorrt import TensorRTEngine

    if name != "tensorrt":
        return [
            (precision, None, partial(open_engine, bundle, name, precision)) for precision in precisions(name, bundle)
        ]
    beside = engines_beside(bundle.path)
    if not beside and not package(name):
        build = f"cfgdiff export --from-bundle {bundle.path} --tensorrt"
        raise Failure(f"TensorRT is not installed; pip install 'cfgdiff[tensorrt]', then build an engine with: {build}")
    if not beside:
        return [("auto", None, partial(open_engine, bundle, name))]  # fails, and says how to get one
    return [
        (built.key.precision, built, partial(TensorRTEngine, bundle, built.key.precision, built=built))
        for built in beside
    ]


def _certificate(built: BuiltEngine, problem: str) -> str:
    try:
        check_certificate(built)
    except Failure as error:
        return str(error)
    return f"{built.path.name}: certified" + (f"; {problem}" if problem else "")
