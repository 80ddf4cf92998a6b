"""`cfgdiff bench cascade`: the speed of a cascade beside loops of diffusers that take as many multiply-adds."""

import os
from pathlib import Path

import click

from .bench import POSITIVE, counts
from .train import PATH

NEAR, LARGEST = 20, 60


@click.command(
    epilog="""\b
Examples:
  cfgdiff bench cascade exported/large --quick
  cfgdiff bench cascade exported/large --size 64 --batches 1,8,32
  cfgdiff bench cascade exported/large --checkpoint runs/base --checkpoint runs/to64 --checkpoint runs/to128"""
)
@click.argument("bundle", type=PATH)
@click.option("--size", type=POSITIVE, help="Height of the pictures: as many stages as it needs. Default: all.")
@click.option("--quick", is_flag=True, help="Fewer batches and rounds, no torch.compile: a minute or two on two cores.")
@click.option("--batches", metavar="B[,B...]", type=counts(4096, "1,8,64"),
              help="Pictures at a time. Default: 1,16, or 8 with --quick.")  # fmt: skip
@click.option("--steps", default=NEAR, show_default=True, type=click.IntRange(1, LARGEST),
              help="Evaluations of diffusers' direct network, as nearly as equal work allows: more of them make it "
              "narrower.")  # fmt: skip
@click.option("--rounds", type=POSITIVE, help="Turns of each loop that are measured. Default: 5, or 3 with --quick.")
@click.option("--threads", type=POSITIVE, help="CPU threads of all of them. Default: the processor's cores.")
@click.option("--checkpoint", "checkpoints", multiple=True, type=PATH, metavar="RUN",
              help="The cascade's networks in PyTorch, the base first; repeats. Default: the presets that the bundle "
              "names.")  # fmt: skip
def cascade(bundle: Path, size: int | None, quick: bool, batches: tuple[int, ...] | None, steps: int,
            rounds: int | None, threads: int | None, checkpoints: tuple[Path, ...]) -> None:  # fmt: skip
    """Time a cascade against what people would use instead at the same number of multiply-adds a picture (GMAC).

    The cascade draws at its defaults, on every engine that works here. Beside it are two loops of diffusers, each in
    the form that is the fastest here (float32 or bfloat16, either memory layout, compiled unless --quick): its own
    U-Net, which draws the largest pictures directly and is made as wide as the cascade's work allows, within a tenth;
    and its DDIM around the cascade's own networks. Speed does not depend on weights, so a cascade that was hardly
    trained will do.
    """
    from cfgdiff.benchmarks.cascade import cascade_report, measure_cascade
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.errors import Failure

    model = load_bundle(bundle)
    model = model if size is None else model.up_to(size)
    if not model.stages:
        raise Failure(f"{model.path}: expected a cascade, found one network; see cfgdiff bench --help")
    if len(checkpoints) not in (0, n := len(model.models)):
        raise click.UsageError(f"--checkpoint: expected {n}, the base first, found {len(checkpoints)}; repeat it")
    wanted, threads = list(batches or ((8,) if quick else (1, 16))), threads or os.cpu_count() or 1
    report = measure_cascade(
        model, wanted, steps, rounds or (3 if quick else 5), threads, not quick, checkpoints,
        lambda part: click.echo(f"{part} ...", err=True),
    )  # fmt: skip
    click.echo(cascade_report(report))
