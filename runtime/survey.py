"""What works here: every engine is opened for a bundle at every precision and asked once; CPU engines are timed."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle, SpeedRecord
from .choose import open_engine
from .engine import Engine
from .engines import ENGINES, REFERENCE, Target, open_at, package, targets
from .errors import Failure
from .examples import example_inputs
from .noise import normals
from .processor import processor
from .sidecar import BuiltEngine, build_command, check_certificate
from .speeds import Speed, Way, speeds
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
    """Why others do not work and how to change that; certificates of built engines; its speed on other machines."""


@dataclass(frozen=True)
class Survey:
    """All engines, in the order of `ENGINES`; the speeds of CPU engines; what "auto" takes for many rows, if
    anything."""

    rows: list[Row]
    speeds: tuple[Speed, ...]
    taken: Way | None


def survey(bundle: Bundle, threads: int | None = None, anew: bool = False) -> Survey:
    """Try all engines. Speeds come from the cache, unless they are to be measured `anew`."""
    timed = speeds(bundle, threads, anew)
    try:
        with closing(open_engine(bundle, threads=threads)) as engine:
            try_out(engine, bundle)
            taken = engine.name, engine.precision
    except Failure:
        taken = None
    return Survey([_row(name, bundle) for name in ENGINES], timed, taken)


def records(timed: Iterable[Speed], threads: int | None) -> list[SpeedRecord]:
    """For a bundle: how many times as fast as `REFERENCE` the certified engines are on this processor."""
    seconds = {s.way: s.many for s in timed if s.certified}
    base, here = seconds.pop(REFERENCE, None), processor().notable
    if not base or not here:
        return []
    return [SpeedRecord(here, threads or cores(), *way, round(base / many, 2)) for way, many in seconds.items()]


def try_out(engine: Engine, bundle: Bundle) -> None:
    """Raises `Failure` where an opened engine has no finite prediction for a guided row of the last class."""
    half, w = np.full(1, bundle.schedule.T / 2, np.float32), np.full(1, 2, np.float32)
    sample, label = normals(0, np.arange(1), 0, bundle.image_shape), np.full(1, len(bundle.class_names) - 1)
    answer = engine.predict(sample, half, label, w, *example_inputs(bundle, 1))
    if not np.isfinite(answer).all():
        wrong = answer[~np.isfinite(answer)][0]
        problem = f"the {engine.precision} variant answers with {wrong} on {engine.name}"
        raise Failure(f"{bundle.path}: {problem}; export the model again")


def _row(name: str, bundle: Bundle) -> Row:
    works, remarks = dict[str, None](), dict[str, None]()  # as sets that keep their order
    try:
        for target in _targets(name, bundle):
            problem = _problem(target, bundle)
            if not problem:
                works[target.precision] = None
            if remark := problem if target.built is None else _certificate(target.built, problem):
                remarks[remark] = None
    except Failure as error:  # nothing to open, or a sidecar that cannot be read
        remarks[str(error)] = None
    installed = package(name)
    if not installed and (elsewhere := _elsewhere(name, bundle)):
        remarks[elsewhere] = None
    return Row(name, installed, tuple(works), tuple(remarks))


def _targets(name: str, bundle: Bundle) -> list[Target]:
    """Raises `Failure` with the command that helps where the engine has nothing to open."""
    to_open = targets(name, bundle)
    if not to_open and not package(name):
        how = f"pip install 'cfgdiff[{name}]', then build an engine with: {build_command(bundle.path)}"
        raise Failure(f"{ENGINES[name].title} is not installed; {how}")
    if not to_open:
        open_at(name, bundle, "auto").close()
    return to_open


def _problem(target: Target, bundle: Bundle) -> str:
    """Why it does not work here; empty where it does."""
    try:
        with closing(target.open(False)) as engine:
            try_out(engine, bundle)
    except Failure as error:
        return str(error)
    return ""


def _elsewhere(name: str, bundle: Bundle) -> str:
    """How much faster a missing engine was on a processor all of whose instructions this one has."""
    here = processor().instructions
    fitting = [r for r in bundle.speeds if r.engine == name and r.times > 1 and here.issuperset(r.instructions)]
    if not fitting:
        return ""
    best = max(fitting, key=lambda r: (len(r.instructions), r.times))
    where = f"a processor with {best.instructions[-1]}" if best.instructions else "another processor"
    threads = f"{best.threads} thread{'s' if best.threads > 1 else ''}"
    was = f"{name} {best.precision} was {best.times:.1f} times {' '.join(REFERENCE)} on {where} ({threads})"
    return f"{was}; pip install 'cfgdiff[{name}]'"


def _certificate(built: BuiltEngine, problem: str) -> str:
    try:
        check_certificate(built)
    except Failure as error:
        return str(error)
    return f"{built.path.name}: certified" + (f"; {problem}" if problem else "")
