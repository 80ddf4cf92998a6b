"""`cfgdiff bench`: how fast, against what people would use instead, and against the machine."""

import json
import os
import shlex
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .train import PATH

if TYPE_CHECKING:
    from cfgdiff.runtime import Bundle

POSITIVE = click.IntRange(min=1)


@click.command(
    epilog="""\b
Examples:
  cfgdiff bench --quick
  cfgdiff bench exported/all --out bench-all
  cfgdiff bench exported/mine --checkpoint runs/mine --threads 8"""
)
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--quick", is_flag=True, help="Fewer batches and rounds, no torch.compile, no other sizes: minutes on two cores."
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Where bench.json, bench.md and bench.png go. Default: bench-NAME."
)
@click.option(
    "--steps", type=POSITIVE, help="Evaluations of ddim that the loops are compared at. Default: 10, or 5 with --quick."
)
@click.option("--rounds", type=POSITIVE, help="Turns of each case that are measured. Default: 7, or 5 with --quick.")
@click.option("--threads", type=POSITIVE, help="CPU threads of all of them. Default: the processor's cores.")
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="RUN",
    help="The bundle's network in PyTorch. Default: the preset that the bundle names.",
)
def bench(
    bundle: Path | None,
    quick: bool,
    out: Path | None,
    steps: int | None,
    rounds: int | None,
    threads: int | None,
    checkpoint: Path | None,
) -> None:
    """Time a bundle (by default the packaged model) against what people would use instead, on the same weights and in the same run.

    The loops draw the same pictures, which is checked first: ours on every engine that works here, the same engine asked twice a step,
    and diffusers' scheduler around the network in PyTorch: eager in either layout, compiled unless --quick, in float32 and bfloat16. The
    fastest of these is what ours is held against. Then: the paper's 1000 steps, whole calls from the shell, one call of the network
    against the machine's matrix product, and what is not the network.
    """
    from cfgdiff.benchmarks.bench_report import markdown, plot
    from cfgdiff.benchmarks.machine import describe
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.files import write_whole

    model, threads = load_bundle(bundle), threads or os.cpu_count() or 1
    steps, rounds, folder = (
        steps or (5 if quick else 10),
        rounds or (5 if quick else 7),
        out or Path(f"bench-{model.name}"),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out: {folder} cannot be made ({error.strerror}); choose another place") from None
    told = {
        "model": model.name,
        "command": shlex.join(["cfgdiff", *sys.argv[1:]]),
        "machine": describe(),
        "threads": threads,
    }
    found = told | _measure(model, quick, steps, rounds, threads, checkpoint)
    text = markdown(found)
    write_whole(folder / "bench.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(folder / "bench.md", text.encode())
    write_whole(folder / "bench.png", plot(found))
    click.echo(text)


def _measure(
    model: "Bundle", quick: bool, steps: int, rounds: int, threads: int, checkpoint: Path | None
) -> dict[str, Any]:
    """All figures, by the name of their table."""
    from cfgdiff.benchmarks import bench as parts
    from cfgdiff.benchmarks.latency import open_all
    from cfgdiff.benchmarks.machine import kinds, peak
    from cfgdiff.benchmarks.whole import operators, outside_rows, shell_rows
    from cfgdiff.benchmarks.work import work_rows
    from cfgdiff.runtime import open_engine
    from cfgdiff.runtime.errors import Failure

    found: dict[str, Any] = {"steps": steps, "rounds": rounds, "skipped": []}
    with ExitStack() as held:
        engines, reasons = open_all(model, held, threads)
        if not engines:
            raise Failure(f"no engine works here: {'; '.join(reasons)}")
        found["skipped"] += [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        chosen = held.enter_context(closing(open_engine(model, threads=threads)))  # what a user gets
        _tell("the machine's matrix product")
        peaks = {kind: peak(kind, threads) for kind in kinds()}
        _tell("loops")
        user = f"{chosen.name} {chosen.precision}"
        engines.setdefault(user, chosen)  # a TensorRT engine has its file's name there
        draws = parts.all_draws(engines, model, steps, threads, checkpoint, not quick, found["skipped"])
        found["peers"] = parts.peer_rows(draws, [1], 2 * rounds) + parts.peer_rows(
            draws, [64] if quick else [8, 64], rounds
        )
        found["lead"] = parts.lead_rows(found["peers"], f"cfgdiff, {user}", [1, 64])
        _tell("the paper's way")
        found["paper"] = parts.papers_way(chosen, model, 64, 4, 2)
        _tell("calls of the network")  # a machine may have been slower a few minutes ago
        found["peaks"] = {kind: max(value, peak(kind, threads)) for kind, value in peaks.items()}
        found["engines"] = parts.engine_rows(
            engines, model, [1, 8, 64] if quick else [1, 2, 8, 64, 256], rounds, found["peaks"]
        )
        found["operators"] = operators(model.path / model.variants["float32"].graph, model, 64, threads)
        _tell("besides the network")
        found["outside"] = outside_rows(chosen, model, [1, 64], rounds)
        _tell("whole calls from the shell")
        found["shell"] = shell_rows(model.path, [1, 64], rounds, threads)
        _tell("cost by work")
        found["work"] = work_rows(chosen, model, threads, [] if quick else [32, 64, 128], 2, found["peaks"])
    if quick:
        found["skipped"].append("pictures of other sizes, batches 2 and 256: leave out --quick")
    return found


def _tell(what: str) -> None:
    click.echo(f"{what} ...", err=True)
