"""`cfgdiff engines`: what this machine can run a bundle on, and how fast."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .flags import log_to_stderr
from .train import PATH

if TYPE_CHECKING:
    from cfgdiff.runtime.speeds import Speed, Way
    from cfgdiff.runtime.survey import Survey

HEADS = ("engine", "precision", "ms at 1", "ms at 64", "times", "opens in s", "certified")


@click.command(
    epilog="""\b
Examples:
  cfgdiff engines
  cfgdiff engines exported/small --threads 4
  cfgdiff engines --measure
  cfgdiff engines exported/small --measure --store"""
)
@click.argument("bundle", type=PATH, required=False)
@click.option("--measure", "anew", is_flag=True, help="Time the engines again, and replace the figures in the cache.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the engine's choice.")
@click.option("--store", is_flag=True,
              help="Store how fast they are here in the bundle, for machines that lack one of them.")  # fmt: skip
def engines(bundle: Path | None, anew: bool, threads: int | None, store: bool) -> None:
    """List which engines work here for a bundle (by default cifar10-small), and how to get the others.

    Each is opened, asked once and closed again. CPU engines are timed, once, for calls of 1 and 64 guided pictures, and
    their pictures compared with those of float32 on ONNX Runtime. A star marks what --engine auto takes for many
    pictures; for a few it takes the engine that opens sooner.
    """
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.survey import records, survey

    log_to_stderr()
    model = load_bundle(bundle).models[0]  # of a cascade, the base; a stage has a folder of its own
    surveyed = survey(model, threads, anew)
    for line in _table(surveyed):
        click.echo(line)
    if surveyed.taken is None:
        raise Failure(f"{model.path}: no engine works here; the lines above say why")
    if store:
        from cfgdiff.export.description import store_speeds

        stored = records(surveyed.speeds, threads)
        store_speeds(model, stored)
        click.echo(f"{model.path}: {len(stored)} records of speed stored", err=True)


def _table(surveyed: "Survey") -> list[str]:
    lines, timed = list[str](), {s.way: s for s in surveyed.speeds if s.many}
    taken = surveyed.taken if surveyed.taken not in timed else None  # else the star is in the table of speeds
    for row in surveyed.rows:
        state = f"works: {', '.join(row.precisions)}" if row.precisions else "does not work here"
        star = "*" if taken and taken[0] == row.engine else " "
        lines.append(f"{star} {row.engine:<10}{row.package or 'not installed':<26}{state}")
        lines += [f"      {remark}" for remark in row.remarks]
    return lines + (_speed_lines(timed, surveyed.taken) if timed else [])


def _speed_lines(timed: "dict[Way, Speed]", taken: "Way | None") -> list[str]:
    from cfgdiff.runtime.engines import REFERENCE

    base, cells = timed[REFERENCE].many, [(" ", *HEADS)]
    for way, s in timed.items():
        figures = f"{1e3 * s.one:.1f}", f"{1e3 * s.many:.1f}", f"{base / s.many:.2f}", f"{s.opened:.2f}"
        certified = f"{'yes' if s.certified else 'no'}: {s.verdict}"
        cells.append(("*" if way == taken else " ", *way, *figures, certified))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return ["", "On this CPU, calls for 1 and for 64 guided pictures, in times cpu float32 at 64:", "", *shown]
