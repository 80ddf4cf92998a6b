"""Time of one network call, for every variant and engine of a bundle that works here, against float32 on ONNX Runtime.

    python -m cfgdiff.benchmarks.latency [BUNDLE] --batches 1,8,64

All rows are guided, so that the network runs on twice as many. The engines take turns; medians and their ratios are printed.
"""

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import click
import numpy as np

from cfgdiff.export.certify import candidates
from cfgdiff.runtime import Bundle, Engine, load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.noise import normals

from . import run
from .timing import Case, interleaved

BASE = "cpu float32"


def open_all(bundle: Bundle, held: ExitStack, threads: int | None = None) -> tuple[dict[str, Engine], dict[str, list[str]]]:
    """What can be opened here, by name, closed with `held`; and the names of the rest by the reasons against them."""
    opened, reasons = dict[str, Engine](), dict[str, list[str]]()
    for candidate in candidates(bundle, threads=threads):
        try:
            opened[candidate.name] = held.enter_context(closing(candidate.open(True)))
        except Failure as error:
            reasons.setdefault(str(error), []).append(candidate.name)
    return opened, reasons


def call_inputs(bundle: Bundle, b: int, g: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `Engine.predict` takes, for b rows of all classes in the middle of the schedule, of which g are guided."""
    return (normals(0, np.arange(b), 0, bundle.image_shape), np.full(b, bundle.schedule.T / 2, np.float32),
            np.arange(b) % len(bundle.class_names), np.full(g, bundle.defaults.guidance, np.float32))  # fmt: skip


def measure(engines: dict[str, Engine], bundle: Bundle, batches: list[int], rounds: int) -> list[Case]:
    """Time every engine at every batch that it takes, in turns, after one unmeasured call each; a case is named as its engine."""
    found: list[Case] = []
    for b in batches:
        inputs = call_inputs(bundle, b, b)
        taking = {name: partial(engine.predict, *inputs) for name, engine in engines.items() if b <= engine.max_batch}
        found += interleaved(taking, rounds, b).values()
    return found


def table(cases: list[Case]) -> str:
    """Markdown: median, spread, pictures a second at 20 steps, and how many times as fast as `BASE` at the same batch."""
    base = {case.pictures: case for case in cases if case.name == BASE}
    lines = ["| batch | engine | ms (min .. max) | pictures/s at 20 steps | times float32 |", "|---|---|---|---|---|"]
    for case in cases:
        told = f"{1e3 * case.median:.2f} ({case.spread}) | {case.pictures / case.median / 20:.1f} | {case.times(base[case.pictures]):.2f}"
        lines.append(f"| {case.pictures} | {case.name} | {told} |")
    return "\n".join(lines)


def parse_batches(text: str) -> list[int]:
    """Batches from "1,8,64"."""
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise click.UsageError(f"--batches: expected numbers from 1 to 4096 as in 1,8,64, found {text!r}")
    return [int(part) for part in parts]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--batches", default="1,8,64", show_default=True, metavar="B[,B...]", help="Pictures in a call.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Calls of each that are measured.")
def command(bundle: Path | None, batches: str, rounds: int) -> None:
    """Time the variants and engines of a bundle (by default the packaged model) against float32 on ONNX Runtime."""
    sizes, found = parse_batches(batches), load_bundle(bundle)
    with ExitStack() as held:
        engines, reasons = open_all(found, held)
        for reason, names in reasons.items():
            click.echo(f"{', '.join(names)}: left out: {reason}", err=True)
        click.echo(table(measure(engines, found, sizes, rounds)))


if __name__ == "__main__":
    run(command)
