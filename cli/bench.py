"""`cfgdiff bench`: speed against other loops and against the machine's limit; and further comparisons, as
subcommands."""

import json
import os
import shlex
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from .flags import Numbers, progress_bar
from .train import PATH

POSITIVE = click.IntRange(min=1)


class Bench(click.Group):
    """A command with subcommands: arguments that begin with a subcommand's name go to it, all others are the command's
    own."""

    allow_interspersed_args, allow_extra_args = True, False

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Of the command that `args` call."""
        if args and args[0] in self.commands:
            return self.commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that `ctx` is of."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


def counts(most: int, example: str) -> Numbers:
    """A flag's list of numbers from 1 to `most`."""

    def number(text: str) -> int:
        if not 0 < int(text) <= most:
            raise ValueError
        return int(text)

    return Numbers(f"numbers from 1 to {most} as in {example}", number=number)


@click.group(
    cls=Bench,
    invoke_without_command=True,
    subcommand_metavar="| COMMAND [ARGS]...",
    epilog="""\b
Examples:
  cfgdiff bench --quick
  cfgdiff bench exported/all --out bench-all
  cfgdiff bench exported/mine --checkpoint runs/mine --threads 8
  cfgdiff bench calls exported/all --batches 1,64
  cfgdiff bench samplers --steps 4,6,8,10 --n 2048 --frechet alexnet.safetensors --out table.md
  cfgdiff bench cascade exported/large --quick
  cfgdiff bench serve --quick
  cfgdiff bench fleet --rate 800 --pictures 10000000 --workers 1,10,1000
  cfgdiff bench training --data DATA
  cfgdiff bench gpu --out report""",
)
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--quick", is_flag=True, help="Fewer batches and rounds, no torch.compile, no other sizes: minutes on two cores."
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Folder for bench.json, bench.md and bench.png. Default: bench-NAME."
)
@click.option("--steps", type=POSITIVE, help="Evaluations of ddim in every loop. Default: 10, or 5 with --quick.")
@click.option("--rounds", type=POSITIVE, help="Turns of each case that are measured. Default: 7, or 5 with --quick.")
@click.option("--threads", type=POSITIVE, help="CPU threads of all of them. Default: the processor's cores.")
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="RUN",
    help="The bundle's network in PyTorch. Default: the preset that the bundle names.",
)
def bench(bundle: Path | None, quick: bool, out: Path | None, steps: int | None, rounds: int | None,
          threads: int | None, checkpoint: Path | None) -> None:  # fmt: skip
    """Time a bundle (by default cifar10-small) against what people would use instead, on the same weights and in
    the same run.

    All loops draw the same pictures, which is checked first: ours on every engine that works here, the same engine
    called twice a step, and diffusers' scheduler around the network in PyTorch: eager in either layout, compiled unless
    --quick, in float32 and bfloat16. Ours is compared with the fastest of these. Then: the paper's 1000 steps, calls
    from the shell, one call of the network against the machine's matrix product, and the time outside of the network.
    """
    from cfgdiff.benchmarks.bench import measure
    from cfgdiff.benchmarks.bench_report import markdown, plot
    from cfgdiff.benchmarks.machine import describe
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.files import write_whole

    from .opening import load_many_steps

    model = load_many_steps(bundle, "loops are compared at any", "see cfgdiff bench cascade --help")
    threads = threads or os.cpu_count() or 1
    steps, rounds, folder = (
        steps or (5 if quick else 10),
        rounds or (5 if quick else 7),
        out or Path(f"bench-{model.name}"),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out: {folder} cannot be made ({error.strerror}); choose another place") from None
    report = {
        "model": model.name,
        "command": shlex.join(["cfgdiff", *sys.argv[1:]]),
        "machine": describe(),
        "threads": threads,
    }
    report |= measure(
        model, quick, steps, rounds, threads, checkpoint, lambda part: click.echo(f"{part} ...", err=True)
    )
    text = markdown(report)
    write_whole(folder / "bench.json", (json.dumps(report, indent=1) + "\n").encode())
    write_whole(folder / "bench.md", text.encode())
    write_whole(folder / "bench.png", plot(report))
    click.echo(text)


@bench.command()
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--batches",
    default="1,8,64",
    show_default=True,
    metavar="B[,B...]",
    type=counts(4096, "1,8,64"),
    help="Pictures in a call.",
)
@click.option("--rounds", default=7, show_default=True, type=POSITIVE, help="Calls of each that are measured.")
def calls(bundle: Path | None, batches: tuple[int, ...], rounds: int) -> None:
    """Time one call of the network for every variant and engine of a bundle (by default cifar10-small)."""
    from cfgdiff.benchmarks.calls import call_rows, call_table, open_all

    from .opening import load_single

    model = load_single(bundle, "the calls of one network are timed")
    with ExitStack() as stack:
        engines, reasons = open_all(model, stack)
        for reason, names in reasons.items():
            click.echo(f"{', '.join(names)}: left out: {reason}", err=True)
        click.echo(call_table(call_rows(engines, model, list(batches), rounds, {})))


@bench.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--steps", default="4,6,8,10,15,20,50", show_default=True, metavar="N[,N...]", type=counts(1000, "4,6,8"),
              help="Network evaluations a picture.")  # fmt: skip
@click.option("--samplers", metavar="NAME[,NAME...]", help="Default: all, and fitted steps where the bundle has them.")
@click.option(
    "--n", default=64, show_default=True, type=click.IntRange(min=2), help="Pictures of each, all classes in turn."
)
@click.option(
    "--teacher-steps",
    default=200,
    show_default=True,
    type=click.IntRange(2, 1000),
    help="Evaluations of the teacher, dpmpp-2m.",
)
@click.option("--frechet", "weights", type=PATH, metavar="FILE",
              help="AlexNet's convolutions as safetensors, for the Fréchet distances.")  # fmt: skip
@click.option("--check-teacher", "checked", default=0, type=click.IntRange(min=0), metavar="N",
              help="Show how far the teacher's first N pictures are from 1000 evaluations of ddim.")  # fmt: skip
@click.option("--data", type=PATH, metavar="DIR",
              help="Fréchet distances to these real pictures, too, as for cfgdiff train.")  # fmt: skip
@click.option("--out", type=PATH, metavar="FILE", help="Write the tables there, too, as Markdown.")
@click.option("--threads", type=POSITIVE, help="CPU threads. Default: the engine's choice.")
def samplers(bundle: Path | None, steps: tuple[int, ...], samplers: str | None, **others: Any) -> None:
    """Compare the samplers of a bundle (by default cifar10-small) with a teacher of many evaluations, in
    float32."""
    from cfgdiff.benchmarks.samplers import Setting, parse_samplers, samplers_report
    from cfgdiff.runtime.files import write_whole

    from .opening import load_many_steps

    model = load_many_steps(bundle, "samplers are compared at any")
    setting = Setting(parse_samplers(samplers, model), sorted(set(steps)), **others)
    text = samplers_report(model, setting, partial(progress_bar, "sampling"))
    click.echo(text)
    if setting.out is not None:
        write_whole(setting.out, (text + "\n").encode())


@bench.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--quick", is_flag=True, help="Fewer clients and rounds: seconds on two cores.")
@click.option("--engine", default="auto", show_default=True, metavar="NAME", help="As for cfgdiff-run.")
@click.option("--precision", default="auto", show_default=True, metavar="NAME", help="As for cfgdiff-run.")
@click.option("--threads", type=POSITIVE, help="CPU threads of all servers. Default: the processor's cores.")
@click.option("--clients", type=POSITIVE, help="Clients that ask at once. Default: 200, or 32 with --quick.")
@click.option("--requests", default=1, show_default=True, type=POSITIVE, help="Of each client, one by one.")
@click.option("--rounds", type=POSITIVE, help="Turns of each server. Default: 3, or 2 with --quick.")
def serve(bundle: Path | None, quick: bool, engine: str, precision: str, threads: int | None, clients: int | None,
          requests: int, rounds: int | None) -> None:  # fmt: skip
    """Compare cfgdiff serve with other servers on one engine (by default with cifar10-turbo), over HTTP: plain FastAPI
    servers that draw whole requests, one by one or batched, and diffusers in such a server.

    Clients ask at once for 1 to 64 pictures, of other classes, steps, w and samplers. The table shows pictures a
    second, beside one call of generate for all of them, and how long requests for a single picture take. Every picture
    of cfgdiff serve is compared with that of generate for its seed: more than 1 grey level is an error, as are pictures
    that are missing or there twice.
    """
    from cfgdiff.runtime import open_engine
    from cfgdiff.runtime.bundle import TURBO

    from .opening import load_single
    from .serve import check_installed

    check_installed()
    from cfgdiff.benchmarks.serving import serving_turns
    from cfgdiff.benchmarks.serving_report import serving_table

    model = load_single(bundle or TURBO, "the scheduler steps one network")
    threads, clients, rounds = threads or os.cpu_count() or 1, clients or (32 if quick else 200), rounds or 3 - quick
    network = _network(model, threads)
    with open_engine(model, engine, precision, threads) as opened:
        click.echo(f"{model.name}, {opened.name} {opened.precision}; {clients} clients, {requests} requests each")
        batch, turns, equal = serving_turns(
            model, opened, network, clients, requests, rounds, lambda part: click.echo(f"{part} ...", err=True)
        )
    click.echo(f"\n{serving_table(turns)}\n\ngenerate draws {batch} pictures at a time, its best batch here.")
    same = f"{equal:.1%} are those of generate to the last bit, and the others differ by 1 grey level"
    click.echo(f"Of the pictures of cfgdiff serve, none is missing, none is there twice, {same}.")


def _network(model: Any, threads: int) -> Any:
    """The network in PyTorch for diffusers; None, and a line that says why, where one of them is missing."""
    from cfgdiff.benchmarks.peers import diffusers_sampler, torch_network
    from cfgdiff.runtime.errors import Failure

    try:
        network = torch_network(model)
        diffusers_sampler(network, model, 1)
    except Failure as error:
        click.echo(f"diffusers: left out: {error}", err=True)
        return None
    import torch

    torch.set_num_threads(threads)
    return network


@bench.command()
@click.option("--data", default="cifar10", show_default=True, type=PATH, help="As for cfgdiff train.")
@click.option("--preset", default="cifar10-small", show_default=True, help="As for cfgdiff train.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, as for cfgdiff train. Repeats."
)
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]),
              help="Of all loops; auto is bfloat16 where the device has instructions for it.")  # fmt: skip
@click.option("--batch", type=POSITIVE, help="Pictures a step. Default: the preset's.")
@click.option("--steps", default=4, show_default=True, type=POSITIVE, help="Steps a turn.")
@click.option("--rounds", default=7, show_default=True, type=POSITIVE, help="Turns that are measured.")
@click.option("--threads", default=2, show_default=True, type=POSITIVE, help="CPU threads.")
def training(data: Path, preset: str, overrides: tuple[str, ...], precision: str, batch: int | None, steps: int,
             rounds: int, threads: int) -> None:  # fmt: skip
    """Compare the training speed with a loop on accelerate, as in diffusers' example, and with group normalisation."""
    import torch

    from cfgdiff.benchmarks.training import compare, configs

    torch.set_num_threads(threads)
    click.echo(f"{preset}, {compare(data, configs(preset, overrides, precision, batch), steps, rounds)}")


@bench.command()
@click.option("--bundle", type=PATH, help="The model. Default: the packaged one.")
@click.option("--out", type=PATH, required=True, help="Folder for the bundle with its engines and report.md.")
@click.option("--batch", default="1,64,256", show_default=True, metavar="MIN,OPT,MAX", help="As for cfgdiff export.")
@click.option("--n", default=256, show_default=True, type=click.IntRange(min=8), help="Pictures for the certificates.")
@click.option("--rounds", default=20, show_default=True, type=POSITIVE, help="Calls of each engine that are timed.")
def gpu(bundle: Path | None, out: Path, batch: str, n: int, rounds: int) -> None:
    """Build, certify and time TensorRT engines on this machine's GPU; exit code 1 where one fails its certificate."""
    from cfgdiff.benchmarks.gpu_check import check

    if check(bundle, out, batch, n, rounds, partial(click.echo, err=True)):
        raise SystemExit(1)
