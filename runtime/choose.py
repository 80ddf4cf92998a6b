"""Which engine a user gets: the one that was named, else the first GPU engine that works, else the fastest on this CPU.

What is fastest is measured (speeds.py), not assumed, and only what is certified on this machine is taken unasked.
"""

import logging
from collections.abc import Iterator

from .bundle import Bundle
from .engine import ON_CPU, OPENERS, OpenedEngine, open_at, precisions, ways_on_cpu
from .errors import BadInput, Failure, nearest
from .speeds import MANY, Speed, Way, speeds

log = logging.getLogger("cfgdiff")
WORTH = 500  # rows of the network: fewer take less time than to measure what computes them fastest


def open_engine(
    bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int | None = None, uncertified: bool = False,
    rows: int | None = None, batch: int = MANY,
) -> OpenedEngine:  # fmt: skip
    """Open an engine for a bundle; `with` closes it at its end.

    Args:
        engine: a name in `OPENERS`, which is never replaced by another; or "auto": TensorRT or CUDA where they work, else the engine
            for CPUs that is certified on this machine and takes the least time, its opening included. That is measured once, in a few
            seconds, and kept in the user's cache.
        precision: a variant of the bundle; bfloat16, which is OpenVINO's alone; or "auto": the fastest one that is certified to give
            float32's pictures, on CPUs within 40 dB.
        threads: CPU threads; None leaves it to the engine.
        uncertified: take a TensorRT engine that `cfgdiff verify` did not pass, too.
        rows: of the network that will be asked for, a guided picture taking two an evaluation; None: many. For few rows an engine that
            opens faster may be taken, and nothing is measured.
        batch: pictures at a time.

    Raises:
        BadInput: an unknown engine or precision.
        Failure: the engine is not available here.
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
    for name, wanted in _ways(bundle, names, precision, threads, rows, batch):
        try:
            opened = open_at(name, bundle, wanted, threads, uncertified)
        except Failure as error:
            reasons.append((name, error))
            log.info("engine %s passed over: %s", name, error)
        else:
            log.info("engine %s, %s", opened.name, opened.precision)
            return opened
    if engine != "auto":
        raise reasons[0][1]
    raise Failure("no engine works here: " + "; ".join(f"{name}: {error}" for name, error in reasons))


def _ways(
    bundle: Bundle, names: list[str], precision: str, threads: int | None, rows: int | None, batch: int
) -> Iterator[Way]:
    """(engine, precision) in the order to try. What CPUs can do is looked at when no GPU would do."""
    yield from ((name, precision) for name in names if name not in ON_CPU)
    plain = [(name, "float32" if precision == "auto" else precision) for name in names if name in ON_CPU]
    possible = (
        [way for way in ways_on_cpu(bundle) if way[0] in names and precision in ("auto", way[1])] if plain else []
    )
    if len(possible) < 2:
        yield from plain
        return
    found = speeds(bundle, threads, kept_only=rows is not None and rows < WORTH)
    if not found:
        log.info(
            "%s without measuring what is fastest: %s rows of the network are done sooner", ", ".join(plain[0]), rows
        )
    ordered = fastest([s for s in found if (s.engine, s.precision) in possible], precision != "auto", rows, batch)
    ways = [(s.engine, s.precision) for s in ordered]
    yield from [*ways, *(way for way in plain if way not in ways)]


def fastest(found: list[Speed], named: bool, rows: int | None, batch: int = MANY) -> list[Speed]:
    """Those that may be taken, the one of the least expected time first; says why the others may not.

    Args:
        named: whether the user named the precision, and so does not ask for float32's pictures.
    """
    usable = sorted((s for s in found if (s.right if named else s.certified)), key=lambda s: s.seconds(rows, batch))
    for s in found:
        if s not in usable:
            log.info("%s, %s passed over: %s", s.engine, s.precision, s.verdict)
        elif s is not usable[0]:
            mine, best = (f"{one.seconds(rows, batch):.3g} s" for one in (s, usable[0]))
            log.info(
                "%s, %s passed over: %s expected, %s, %s %s",
                s.engine,
                s.precision,
                mine,
                usable[0].engine,
                usable[0].precision,
                best,
            )
    return usable
