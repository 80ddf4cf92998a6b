"""What `cfgdiff bench cascade` measures: pictures of a cascade on every engine, beside loops of diffusers that take as
many multiply-adds."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cfgdiff.export.markdown import table
from cfgdiff.runtime import Bundle, Engine, Request, draw, open_engine
from cfgdiff.runtime.cascade import Cascade
from cfgdiff.runtime.counting import cost_of
from cfgdiff.runtime.errors import Failure

from .calls import open_all
from .equal_work import cascade_gmac, cascade_loop, direct, direct_loop
from .machine import describe
from .peers import Draw, torch_network
from .timing import Case, interleaved

Say = Callable[[str], object]


def measure_cascade(bundle: Bundle, batches: list[int], near: int, rounds: int, threads: int, compiled: bool,
                    checkpoints: tuple[Path, ...], say: Say) -> dict[str, Any]:  # fmt: skip
    """Rows of `case_rows` for each number of pictures at a time, and what they are of.

    Args:
        near: the evaluations that diffusers' direct network takes, as nearly as its width allows.
        compiled: also compile diffusers' networks, which takes minutes.
        checkpoints: of the cascade's networks in PyTorch, the base first; empty: the presets that the bundles name.
        say: gets the name of each part when it begins.

    Raises:
        Failure: no engine works here, diffusers is missing, or the cascade does not say what a row of it costs.
    """
    torch.set_num_threads(threads)
    skipped, rows = list[str](), list[dict[str, Any]]()
    with ExitStack() as stack:
        say("engines")
        engines, chosen = open_cascades(bundle, stack, threads, skipped)
        gmac = gmac_of(bundle, engines[chosen])
        peer = direct(bundle, gmac, near)
        networks = _networks(bundle, checkpoints, skipped)
        for n in batches:
            say(f"{n} at a time: diffusers' fastest forms")
            draws = {name: (gmac, ours(engine, bundle)) for name, engine in engines.items()}
            form, loop = direct_loop(peer, n, compiled)
            draws[f"diffusers, direct: {form}"] = peer.gmac, loop
            if networks is not None:
                form, loop = cascade_loop(networks, bundle, n, compiled)
                draws[f"diffusers, the same networks: {form}"] = cascade_gmac(bundle), loop
            say(f"{n} at a time: turns")
            rows += case_rows(draws, chosen, n, rounds)
    if not compiled:
        skipped.append("diffusers' compiled loops, which may be faster but take minutes to compile; leave out --quick")
    return {
        "model": bundle.name, "size": bundle.picture_shape[1], "rounds": rounds, "threads": threads,
        "machine": describe(), "skipped": skipped, "chosen": chosen, "gmac": gmac, "rows": rows,
        "direct": {"width": peer.width, "evaluations": peer.evaluations, "gmac": peer.gmac},
    }  # fmt: skip


def open_cascades(bundle: Bundle, stack: ExitStack, threads: int, skipped: list[str]) -> tuple[dict[str, Engine], str]:
    """A cascade's engines by name: all networks on each engine and precision that all have, and what a user gets, whose
    name comes second; closed with `stack`. What does not open is appended to `skipped`. Raises `Failure`."""
    opened = [open_all(model, stack, threads) for model in bundle.models]
    reasons = {reason: names for _, each in opened for reason, names in each.items()}
    skipped += [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    (first, _), *above = opened
    engines: dict[str, Engine] = {
        f"cfgdiff, {name}": Cascade([first[name], *(others[name] for others, _ in above)])
        for name in first if all(name in others for others, _ in above)
    }  # fmt: skip
    auto = stack.enter_context(closing(open_engine(bundle, threads=threads)))
    assert isinstance(auto, Cascade)
    taken = dict.fromkeys(f"{engine.name} {engine.precision}" for engine in (auto.engine, *auto.stages))
    chosen = f"cfgdiff, {' + '.join(taken)}"
    engines.setdefault(chosen, auto)
    return engines, chosen


def gmac_of(bundle: Bundle, engine: Engine) -> float:
    """Billions of multiply-adds in a picture of a cascade at its defaults. Raises `Failure` where it is not known."""
    gmac = cost_of(bundle, engine, Request([])).gmac
    if gmac is None:
        raise Failure(f"{bundle.path}: does not say what a row of its networks costs; export the cascade again")
    return gmac


def ours(engine: Engine, bundle: Bundle) -> Draw:
    """A cascade's pictures of all classes in turn, at its defaults."""
    return lambda n: draw(bundle, [i % len(bundle.class_names) for i in range(n)], engine, batch=n)


def _networks(bundle: Bundle, checkpoints: tuple[Path, ...], skipped: list[str]) -> list[Any] | None:
    """A cascade's networks in PyTorch; None, and why, where they cannot be made."""
    try:
        each = checkpoints or [None] * len(bundle.models)
        return [torch_network(model, checkpoint) for model, checkpoint in zip(bundle.models, each, strict=True)]
    except Failure as error:
        if checkpoints:
            raise
        skipped.append(f"diffusers' loop around the same networks: {error}")
        return None


def case_rows(draws: Mapping[str, tuple[float, Draw]], chosen: str, n: int, rounds: int) -> list[dict[str, Any]]:
    """A row for every loop, n pictures at a time: what it takes, and how many times as fast `chosen` is.

    Args:
        draws: by name, billions of multiply-adds in a picture, and what draws them.
    """
    cases = interleaved({name: partial(loop, n) for name, (_, loop) in draws.items()}, rounds, n)
    return [_row(case, draws[name][0], cases[chosen]) for name, case in cases.items()]


def _row(case: Case, gmac: float, chosen: Case) -> dict[str, Any]:
    speed = case.pictures / case.median
    return {
        "loop": case.name, "B": case.pictures, "gmac": gmac, "pictures/s": speed, "GMAC/s": gmac * speed,
        "ms": 1e3 * case.median, "spread": case.spread, "chosen is faster": chosen.times(case),
        "ratios": chosen.ratios(case),
    }  # fmt: skip


def cascade_report(report: dict[str, Any]) -> str:
    """The figures as Markdown, with the machine, and what was left out."""
    machine, direct_network = report["machine"], report["direct"]
    heads = ["pictures at a time", "loop", "GMAC a picture", "GMAC/s", "pictures/s", "ms, least .. largest",
             "cfgdiff is faster, times"]  # fmt: skip
    cells = [
        [row["B"], row["loop"], f"{row['gmac']:.3g}", f"{row['GMAC/s']:.3g}", f"{row['pictures/s']:.2f}",
         f"{row['ms']:.0f} ({row['spread']})", _times(row)] for row in report["rows"]
    ]  # fmt: skip
    taken = report["chosen"].removeprefix("cfgdiff, ")
    return "\n".join([
        f"{report['model']}, {report['size']}x{report['size']}; {machine['processor']} ({machine['instructions']}), "
        f"{report['threads']} threads; medians of {report['rounds']} rounds in which the loops take turns.", "",
        f"--engine auto takes {taken}; the last column is of that. diffusers' direct network is a UNet2DModel with "
        f"random weights, {direct_network['width']} channels at the full size, in {direct_network['evaluations']} "
        "guided evaluations of DDIM.", "",
        *(f"Left out: {reason}." for reason in report["skipped"]), "", table(heads, cells),
    ])  # fmt: skip


def _times(row: dict[str, Any]) -> str:
    return f"{row['chosen is faster']:.2f} ({min(row['ratios']):.2f} .. {max(row['ratios']):.2f})"
