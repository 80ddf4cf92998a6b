"""Latency: what a user would pick instead, in the same run, and how near the machine's limit is. All that `cfgdiff bench` measures.

Every figure is the median of rounds in which the cases take turns after one unmeasured turn each (timing.py), with the least and the
largest beside it. Ratios are medians of the ratios within rounds.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.errors import Failure

from .latency import call_inputs
from .machine import limit_of, operations
from .peers import PEER, Draw, diffusers_loops, ours, torch_network, two_passes
from .timing import Case, interleaved

TOLERANCE = 2  # grey levels between pictures of peers and ours, at all but a thousandth of the pixels
LOW = ("float16", "int8")  # precisions whose pictures may differ: certificates say by how much
PAPER_STEPS = 1000


def engine_rows(
    engines: dict[str, Engine], bundle: Bundle, batches: list[int], rounds: int, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for every engine, batch B and G in (0, B): time a call, operations a second, and their share of the matrix product's peak."""
    rows = []
    for b, g in [(batch, guided) for batch in batches for guided in (0, batch)]:
        inputs, work = call_inputs(bundle, b, g), operations(bundle.path / bundle.variants["float32"].graph, b, g)
        taking = {name: engine for name, engine in engines.items() if b <= engine.max_batch}
        cases = {name: partial(engine.predict, *inputs) for name, engine in taking.items()}
        for name, case in interleaved(cases, rounds, b).items():
            limit, speed = limit_of(taking[name].precision, peaks), work / case.median
            rows.append({"engine": name, "B": b, "G": g, "ms": 1e3 * case.median, "spread": case.spread, "gflops": speed / 1e9,
                         "of peak": speed / limit if limit else None})  # fmt: skip
    return rows


def peer_rows(draws: dict[str, Draw], batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for every loop and number of pictures, with its ratio to the fastest of diffusers' loops there; the first loop is ours.

    Raises:
        Failure: a peer whose pictures are not ours: its time would say nothing.
    """
    rows = []
    for n in batches:
        reference, *others = (draw(n).astype(int) for draw in draws.values())
        for name, pictures in zip(list(draws)[1:], others, strict=True):
            apart = float((np.abs(pictures - reference) > TOLERANCE).mean())
            if apart > 1e-3 and not any(low in name for low in LOW):
                raise Failure(f"{name}: {apart:.1%} of its pixels differ from ours by more than {TOLERANCE} grey levels")
        cases = interleaved({name: partial(draw, n) for name, draw in draws.items()}, rounds, n, warm=True)
        fastest = min((case for case in cases.values() if case.name.startswith(PEER)), key=lambda case: case.median, default=None)
        for name, case in cases.items():
            rows.append({"loop": name, "B": n, "pictures/s": n / case.median, "ms": 1e3 * case.median, "spread": case.spread,
                         "fastest of diffusers": case is fastest,
                         "times diffusers' fastest": case.times(fastest) if fastest else None,
                         "ratios": case.ratios(fastest) if fastest else None})  # fmt: skip
    return rows


def lead_rows(rows: list[dict[str, Any]], loop: str, batches: list[int]) -> list[dict[str, Any]]:
    """What a user gets, which is `loop` of `peer_rows`, beside the fastest of diffusers' loops (None where there is none), for each B."""
    found = []
    for n in batches:
        ours = next(row for row in rows if row["B"] == n and row["loop"] == loop)
        peer = next((row for row in rows if row["B"] == n and row["fastest of diffusers"]), None)
        found.append({"B": n, "loop": loop, "pictures/s": ours["pictures/s"], "diffusers": peer["loop"] if peer else None,
                      "diffusers, pictures/s": peer["pictures/s"] if peer else None,
                      "times diffusers' fastest": ours["times diffusers' fastest"], "ratios": ours["ratios"],
                      "compiled loops timed": any(row["loop"].startswith(f"{PEER}compiled") for row in rows)})  # fmt: skip
    return found


def all_draws(engines: dict[str, Engine], bundle: Bundle, steps: int, threads: int, checkpoint: Path | None, compiled: bool,
              skipped: list[str]) -> dict[str, Draw]:  # fmt: skip
    """Our loop on every engine, the two-pass loop on the first, and diffusers' loops where they can be had; why not, goes to `skipped`."""
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
        skipped.append("diffusers' compiled loops, which may be faster than its others: they take minutes to compile; leave out --quick")
    return draws | peers


def papers_way(engine: Engine, bundle: Bundle, n: int, measured: int, rounds: int) -> dict[str, Any]:
    """n pictures at the defaults, and in the paper's 1000 steps of Algorithm 2, extrapolated from `measured` of them."""
    classes = [i % len(bundle.class_names) for i in range(n)]
    few = np.linspace(PAPER_STEPS, 0, PAPER_STEPS + 1)[:measured].tolist()

    def drawn(**settings: Any) -> Callable[[], object]:
        return lambda: [None for _ in generate(engine, bundle, classes, batch=n, **settings)]

    cases = interleaved({"defaults": drawn(), "paper": drawn(sampler="ddpm", timesteps=few, interval=(0, np.inf))}, rounds, n)
    paper = Case("paper", n, [seconds * PAPER_STEPS / measured for seconds in cases["paper"].seconds])
    return {"n": n, "defaults, s": cases["defaults"].median, "paper's way, s": paper.median, "measured steps": measured,
            "times": cases["defaults"].times(paper)}  # fmt: skip
