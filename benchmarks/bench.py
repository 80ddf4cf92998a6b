"""All that `cfgdiff bench` measures: a bundle against what people would use instead, in the same run, and against the
machine's limit.

Every figure is the median of rounds in which the cases take turns after one unmeasured turn each (timing.py), with the
least and the largest beside it. Ratios are medians of the ratios within rounds.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate, open_engine
from cfgdiff.runtime.errors import Failure

from .calls import call_rows, open_all, operators
from .machine import kinds, peak
from .peers import PEER, Draw, diffusers_loops, ours, torch_network, two_passes
from .scaling import scaling_rows
from .shell import outside_rows, shell_rows
from .timing import Case, interleaved

TOLERANCE = 2  # grey levels between pictures of peers and ours, at all but a thousandth of the pixels
LOW = ("float16", "int8")  # precisions whose pictures may differ: certificates say by how much
PAPER_STEPS = 1000


def measure(model: Bundle, quick: bool, steps: int, rounds: int, threads: int, checkpoint: Path | None,
            say: Callable[[str], None]) -> dict[str, Any]:  # fmt: skip
    """All figures, by the name of their table. `say` gets the name of each part when it begins.

    Raises:
        Failure: no engine works here, or a peer draws other pictures.
    """
    skipped, figures = list[str](), dict[str, Any]()
    with ExitStack() as stack:
        engines, reasons = open_all(model, stack, threads)
        if not engines:
            raise Failure(f"no engine works here: {'; '.join(reasons)}")
        skipped += [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        chosen = stack.enter_context(closing(open_engine(model, threads=threads)))  # the one that a user gets
        name = f"{chosen.name} {chosen.precision}"
        engines.setdefault(name, chosen)  # `engines` names a TensorRT engine after its file
        say("the machine's matrix product")
        peaks = {kind: peak(kind, threads) for kind in kinds()}
        say("loops")
        draws = all_draws(engines, model, steps, threads, checkpoint, not quick, skipped)
        figures["peers"] = peer_rows(draws, [1], 2 * rounds) + peer_rows(draws, [64] if quick else [8, 64], rounds)
        figures["lead"] = lead_rows(figures["peers"], f"cfgdiff, {name}", [1, 64])
        say("the paper's way")
        figures["paper"] = papers_way(chosen, model, 64, 4, 2)
        say("calls of the network")  # a machine may have been slower a few minutes ago
        peaks = {kind: max(value, peak(kind, threads)) for kind, value in peaks.items()}
        figures["engines"] = call_rows(engines, model, [1, 8, 64] if quick else [1, 2, 8, 64, 256], rounds, peaks)
        figures["operators"] = operators(model.path / model.variants["float32"].graph, model, 64, threads)
        say("besides the network")
        figures["outside"] = outside_rows(chosen, model, [1, 64], rounds)
        say("calls from the shell")
        figures["shell"] = shell_rows(model.path, [1, 64], rounds, threads)
        say("scaling")
        figures["scaling"] = scaling_rows(chosen, model, threads, [] if quick else [32, 64, 128], 2, peaks)
    if quick:
        skipped.append("pictures of other sizes, batches 2 and 256: leave out --quick")
    return {"steps": steps, "rounds": rounds, "skipped": skipped, "peaks": peaks} | figures


def peer_rows(draws: dict[str, Draw], batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for every loop and number of pictures, with its ratio to the fastest of diffusers' loops there; the first
    loop is ours.

    Raises:
        Failure: a peer draws other pictures than ours, so its time would say nothing.
    """
    rows = []
    for n in batches:
        reference, *others = (draw(n).astype(int) for draw in draws.values())
        for name, pictures in zip(list(draws)[1:], others, strict=True):
            apart = float((np.abs(pictures - reference) > TOLERANCE).mean())
            if apart > 1e-3 and not any(low in name for low in LOW):
                raise Failure(
                    f"{name}: {apart:.1%} of its pixels differ from ours by more than {TOLERANCE} grey levels"
                )
        cases = interleaved({name: partial(draw, n) for name, draw in draws.items()}, rounds, n, warm=True)
        fastest = min(
            (case for case in cases.values() if case.name.startswith(PEER)), key=lambda case: case.median, default=None
        )
        for name, case in cases.items():
            rows.append({"loop": name, "B": n, "pictures/s": n / case.median, "ms": 1e3 * case.median,
                         "spread": case.spread, "fastest of diffusers": case is fastest,
                         "times diffusers' fastest": case.times(fastest) if fastest else None,
                         "ratios": case.ratios(fastest) if fastest else None})  # fmt: skip
    return rows


def lead_rows(rows: list[dict[str, Any]], loop: str, batches: list[int]) -> list[dict[str, Any]]:
    """For each B, `loop` of `peer_rows`, which is what a user gets, beside the fastest of diffusers' loops (None where
    there is none)."""
    lead = []
    for n in batches:
        own = next(row for row in rows if row["B"] == n and row["loop"] == loop)
        peer = next((row for row in rows if row["B"] == n and row["fastest of diffusers"]), None)
        lead.append({"B": n, "loop": loop, "pictures/s": own["pictures/s"], "diffusers": peer["loop"] if peer else None,
                      "diffusers, pictures/s": peer["pictures/s"] if peer else None,
                      "times diffusers' fastest": own["times diffusers' fastest"], "ratios": own["ratios"],
                      "compiled loops timed": any(row["loop"].startswith(f"{PEER}compiled") for row in rows),
                      })  # fmt: skip
    return lead


def all_draws(engines: dict[str, Engine], bundle: Bundle, steps: int, threads: int, checkpoint: Path | None,
              compiled: bool, skipped: list[str]) -> dict[str, Draw]:  # fmt: skip
    """Our loop on every engine, the two-pass loop on the first, and diffusers' loops where they run; reasons are
    appended to `skipped`."""
    draws = {f"cfgdiff, {name}": ours(engine, bundle, steps) for name, engine in engines.items()}
    first = next(iter(engines))
    draws[f"two passes a step, {first}"] = two_passes(engines[first], bundle, steps)
    try:
        network = torch_network(bundle, checkpoint)
        peers = diffusers_loops(network, bundle, steps, compiled)
    except Failure as error:
        skipped.append(f"diffusers' loops: {error}")
        return draws
    import torch

    torch.set_num_threads(threads)
    if not any("bfloat16" in name for name in peers):
        skipped.append("diffusers' loops in bfloat16: no instructions for it here")
    if not compiled:
        skipped.append("diffusers' compiled loops, which may be faster but take minutes to compile; leave out --quick")
    return draws | peers


def papers_way(engine: Engine, bundle: Bundle, n: int, measured: int, rounds: int) -> dict[str, Any]:
    """n pictures at the defaults, and in the paper's 1000 steps of Algorithm 2, extrapolated from `measured` of
    them."""
    classes = [i % len(bundle.class_names) for i in range(n)]
    few = np.linspace(PAPER_STEPS, 0, PAPER_STEPS + 1)[:measured].tolist()

    def drawn(**settings: Any) -> Callable[[], object]:
        return lambda: [None for _ in generate(engine, bundle, classes, batch=n, **settings)]

    cases = interleaved(
        {"defaults": drawn(), "paper": drawn(sampler="ddpm", timesteps=few, interval=(0, np.inf))}, rounds, n
    )
    paper = Case("paper", n, [seconds * PAPER_STEPS / measured for seconds in cases["paper"].seconds])
    return {"n": n, "defaults, s": cases["defaults"].median, "paper's way, s": paper.median, "measured steps": measured,
            "times": cases["defaults"].times(paper)}  # fmt: skip
