"""Which engine a user gets: the one that was named, else the first GPU engine that works, else the fastest on this CPU.

What is fastest is measured (speeds.py). An engine that is not named is taken only where it is certified here.
"""

import logging
from collections.abc import Iterator

from .bundle import Bundle
from .cascade import Cascade
from .engine import OpenedEngine
from .engines import ENGINES, open_at, precisions, ways_on_cpu
from .errors import Failure, named
from .speeds import MANY, Speed, Way, speeds

log = logging.getLogger("cfgdiff")
WORTH = 500  # rows of the network: computing fewer takes less time than measuring which engine is fastest


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    uncertified: bool = False,
    rows: int | None = None,
    batch: int = MANY,
) -> OpenedEngine:
    """Open an engine for a bundle, or a `Cascade` of them for one with stages; `with` closes it at its end.

    Args:
        engine: a name in `ENGINES`, which is never replaced by another; or "auto": TensorRT or CUDA where they work,
            else the certified CPU engine that takes the least time, opening included, as measured once and cached.
        precision: a variant of the bundle; bfloat16 on OpenVINO; or "auto": the fastest one whose pictures are
            certified to be float32's, on CPUs within 40 dB.
        threads: of the CPU; None leaves the number to the engine.
        uncertified: also accept a TensorRT engine that `cfgdiff verify` did not pass.
        rows: of the network in all the calls to come, None for many (see `Plan.rows`). For few rows an engine that
            opens faster may be taken, and nothing is measured.
        batch: pictures at a time.

    Raises:
        BadInput: an unknown engine or precision.
        Failure: the engine is not available here.
    """
    if bundle.stages:
        return Cascade([open_engine(m, engine, precision, threads, uncertified, rows, batch) for m in bundle.models])
    engine, reasons = named("engine", "engine", engine, ["auto", *ENGINES]), list[tuple[str, Failure]]()
    names = list(ENGINES) if engine == "auto" else [engine]
    if precision != "auto":
        names = [name for name in names if precision in precisions(name, bundle)]
        if not names:
            bundle.variant(precision)  # raises, with the choices
    for name, wanted in _ways(bundle, names, precision, threads, rows, batch):
        try:
            opened = open_at(name, bundle, wanted, threads, uncertified)
        except Failure as error:
            reasons.append((name, error))
            log.info("engine %s passed over: %s", name, error)
        else:
            log.info("engine %s, %s", opened.name, opened.precision)
            return opened
    every = Failure("no engine works here: " + "; ".join(f"{name}: {error}" for name, error in reasons))
    raise every if engine == "auto" else reasons[0][1]


def _ways(
    bundle: Bundle, names: list[str], precision: str, threads: int | None, rows: int | None, batch: int
) -> Iterator[Way]:
    """(engine, precision) in the order to try. CPU engines are measured only after no GPU engine worked."""
    yield from ((name, precision) for name in names if not ENGINES[name].on_cpu)
    plain = [(n, "float32" if precision == "auto" else precision) for n in names if ENGINES[n].on_cpu]
    possible = [w for w in ways_on_cpu(bundle) if w[0] in names and precision in ("auto", w[1])] if plain else []
    if len(possible) < 2:
        yield from plain
        return
    timed = speeds(bundle, threads, kept_only=rows is not None and rows < WORTH)
    if not timed:
        reason = "without measuring what is fastest: %s rows of the network are done sooner"
        log.info(f"%s {reason}", ", ".join(plain[0]), rows)
    evaluations = None if rows is None else rows / bundle.rows(1, 1)
    ordered = fastest([s for s in timed if s.way in possible], precision != "auto", evaluations, batch)
    ways = [s.way for s in ordered]
    yield from [*ways, *(way for way in plain if way not in ways)]


def fastest(timed: list[Speed], by_name: bool, evaluations: float | None, batch: int = MANY) -> list[Speed]:
    """The usable ones, the least expected time first; logs why the others are passed over.

    Args:
        by_name: the user named the precision, and so does not ask for float32's pictures.
    """
    usable = [s for s in timed if (s.right if by_name else s.certified)]
    usable.sort(key=lambda s: s.seconds(evaluations, batch))
    for s in timed:
        if s not in usable:
            log.info("%s, %s passed over: %s", *s.way, s.verdict)
        elif s is not usable[0]:
            own, least = (f"{speed.seconds(evaluations, batch):.3g} s" for speed in (s, usable[0]))
            log.info("%s, %s passed over: %s expected, %s, %s %s", *s.way, own, *usable[0].way, least)
    return usable
