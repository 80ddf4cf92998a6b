"""`cfgdiff-run`: pictures from a bundle. Reads the flags, hands over to cfgdiff.runtime, reports."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import one_line, run_command
from .flags import INTERVAL, MOST_STEPS, Count, Destination, FilePath, Numbers, log_to_stderr, typed_flags
from .shard_flags import MOST as MOST_IN_SHARDS
from .shard_flags import idle_shard_flags, plain_place, shard_flags, taken
from .stages import asked_stages, stage_options, stages_report

if TYPE_CHECKING:
    from cfgdiff.runtime import Blend, Bundle, Plan, Request
    from cfgdiff.runtime.shard_set import ShardSet

    from .draw import Drawing
    from .opening import Wanted
    from .shard_flags import Sharding

Edited = tuple[Path | None, float | None, Path | None]  # --from, --strength, --mask
Planned = TypeVar("Planned")
log = logging.getLogger("cfgdiff")
PATH, MOST = FilePath(), 10_000_000  # pictures; a list of them fits into memory
# The flags beside --remake: the note in the picture does not have these.
REMAKE_TAKES = {
    "remake", "out", "source", "strength", "mask", "model", "engine", "precision", "uncertified", "threads", "verbose",
}  # fmt: skip


def _refuse_idle_flags(context: click.Context) -> None:
    """A flag that would change nothing is a mistake, not silence. Raises `UsageError`, naming it."""
    values, typed = context.params, typed_flags(context)
    out, idle = values["out"], dict[str, str]()
    if values["remake"] is not None:
        why = "has no effect with --remake, which draws what the picture's note says; leave it out"
        idle = dict.fromkeys(typed.keys() - REMAKE_TAKES, why)
    elif values["interpolate"] is not None:
        idle = {"seed": "--interpolate SEED1:SEED2 names the seeds; leave it out"}
    else:
        idle = {"frames": "is for interpolations, found none; add --interpolate SEED1:SEED2"}
    idle |= idle_shard_flags(values)
    suffix = Path(out).suffix.lower()
    if values["remake"] is None and suffix in (".png", ".jpg", ".jpeg", ".webp", ".gif", ".npz"):
        idle["kind"] = f"is for pictures in a folder or .tar, found --out {out}; leave it out"
    for name, flag in typed.items():
        if name in idle:
            raise click.UsageError(f"{flag}: {idle[name]}")
        if values[name] == "":
            raise click.UsageError(f"{flag}: expected a name, found ''; leave it out for the default")


@click.command(
    epilog="""\b
Examples:
  cfgdiff-run --class frog --n 64 --out frogs
  cfgdiff-run --class all --n 100 --out grid.png
  cfgdiff-run --class cat,dog --n 10000 --batch 128 --out pets.npz --json
  cfgdiff-run --class all --n 100000 --out many --resume
  cfgdiff-run --class all --n 1000000 --shard-size 10000 --out s3://bucket/set --shard-format parquet
  cfgdiff-run --class all --n 1000000 --shard-size 10000 --out /shared/set --shard-of 0/8
  cfgdiff-run --class all --n 1000000 --shard-size 10000 --out /shared/set --ray auto
  cfgdiff-run --remake frogs/0003.png --out again.png
  cfgdiff-run --class cat,dog --interpolate 1:2 --frames 9 --n 4 --out between.png
  cfgdiff-run --class horse --from deer.jpg --strength 0.6 --out horses
  cfgdiff-run --class ship --stream --n 2
  cfgdiff-run --class frog --n 64 --steps 1 --out frogs
  cfgdiff-run --model cifar10-small --class frog --steps 12 --sampler unipc
  cfgdiff-run --model exported/mine --class frog --steps 12 --guidance 2
  cfgdiff-run --model exported/cascade --class all --size 64 --stage-steps 6"""
)
@click.option("--class", "classes", multiple=True, metavar="NAME",
              help="Class to draw; repeats, takes a comma list; 'all' goes round all.")  # fmt: skip
@click.option("--n", type=Count(most=MOST_IN_SHARDS),
              help="Number of pictures, or of interpolations. Default: 16, or 1.")  # fmt: skip
@click.option("--steps", type=Count(most=MOST_STEPS), help="Network evaluations a picture. Default: the model's.")
@click.option("--sampler", metavar="NAME", help="ddpm, ddim, dpmpp-2m, dpmpp-3m, unipc, ipndm, heun, euler, euler-a "
              "or fitted. Default: the model's.")  # fmt: skip
@click.option("--spacing", metavar="NAME",
              help="Of the evaluations: uniform, quadratic, log-snr or karras. Default: the sampler's.")  # fmt: skip
@click.option("--timesteps", metavar="T[,T...]", type=Numbers("numbers as in 999,750.5,20"),
              help="The t to evaluate at, falling from at most the model's T; for heun every second one.")  # fmt: skip
@click.option("--eta", default=0.0, show_default=True, help="Share of ddpm's noise in ddim, 0 .. 1.")
@click.option("--guidance", metavar="W[,W...]", type=Numbers("numbers as in 4 or 1,2,4"),
              help="Guidance w; 1 is none, which cifar10-small draws at half the cost; a list goes round. "
                   "Default: the model's.")  # fmt: skip
@click.option("--guidance-interval", "interval", metavar="LO,HI", type=INTERVAL, help="Of sigma / alpha, where w acts; "
              "elsewhere it is 1. Default: the model's.")  # fmt: skip
@click.option("--guidance-rescale", "rescale", default=0.0, show_default=True,
              help="How much of the contrast that w adds is removed, 0 .. 1.")  # fmt: skip
@click.option("--threshold", type=float, help="Dynamic thresholding: the share of pixels left in range, as 0.995.")
@click.option("--seed", default=0, show_default=True, help="Picture i depends on (seed, i), its class and w alone.")
@click.option("--interpolate", metavar="SEED1:SEED2", type=Numbers("SEED1:SEED2 as in 1:2", 2, int, ":"),
              help="From one seed to another, and from one class to a second.")  # fmt: skip
@click.option("--frames", default=9, show_default=True, type=Count(least=2),
              help="Pictures of an interpolation, both ends among them.")  # fmt: skip
@click.option("--from", "source", type=PATH, metavar="PICTURE",
              help="Start from this picture, cropped and resized, instead of noise.")  # fmt: skip
@click.option(
    "--strength", type=float, help="How much of the picture is drawn anew, 0 .. 1. Default: 0.5; 1 with a mask."
)
@click.option("--mask", type=PATH, metavar="PICTURE", help="Draw where this is white and keep the picture elsewhere.")
@click.option("--size", type=Count(), help="Height of the pictures of a cascade: as many stages as it needs. Default: "
              "all.")  # fmt: skip
@stage_options
@click.option("--batch", default=64, show_default=True, type=Count(), help="Pictures at a time.")
@click.option("--out", default="samples", show_default=True, type=Destination(),
              help="A folder (pictures, grid.png), or a .png, .jpg or .webp (the picture, or a grid of several), .gif "
                   "(denoising, or interpolation), .npz (arrays pictures, labels) or .tar (WebDataset).")  # fmt: skip
@click.option("--format", "kind", default="png", show_default=True, type=click.Choice(["png", "webp"]),
              help="Of pictures in a folder or .tar.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted folder or .tar: draw only the missing pictures. "
              "An interrupted .tar is kept only where its run had --resume, too.")  # fmt: skip
@shard_flags
@click.option("--remake", type=PATH, metavar="FILE", help="Draw this picture again from its note, and compare.")
@click.option("--stream", is_flag=True, help="Show the first pictures in the terminal while they are denoised.")
@click.option("--model", type=PATH, help="A bundle, or a packaged model by its name (see cfgdiff models). Default: "
              "cifar10-turbo; cifar10-small where a flag asks for what only many steps can do.")  # fmt: skip
@click.option("--engine", default="auto", show_default=True, metavar="NAME",
              help="tensorrt, cuda, cpu, openvino; auto: the fastest.")  # fmt: skip
@click.option("--precision", default="auto", show_default=True, metavar="NAME",
              help="A variant of the bundle: float32, float16, int8; or bfloat16, on openvino; auto: the fastest whose "
                   "pictures are certified to be float32's.")  # fmt: skip
@click.option("--uncertified", is_flag=True, help="Take a TensorRT engine that cfgdiff verify did not pass, too.")
@click.option("--threads", type=Count(most=1024), help="CPU threads. Default: the engine's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--list-classes", is_flag=True, help="Print the model's classes and stop; with --json as a list.")
@click.option("-v", "--verbose", is_flag=True, help="Show which engine was taken and why.")
@click.version_option(package_name="cfgdiff")
def command(out: Path | str, remake: Path | None, model: Path | None, list_classes: bool, as_json: bool, verbose: bool,
            **flags: Any) -> None:  # fmt: skip
    """Generate pictures of a class. Each carries a note of how it was made, from which --remake makes it again."""
    started = time.perf_counter()
    _refuse_idle_flags(click.get_current_context())
    from cfgdiff.runtime import load_bundle, resolve
    from cfgdiff.runtime.outputs import check_place

    from .draw import Drawing, Target, draw
    from .edit import read_edit
    from .opening import Wanted, first_note, warn_of_steps

    log_to_stderr(verbose)
    wanted = Wanted(*(flags.pop(name) for name in ("engine", "precision", "threads", "uncertified")))
    kind, resume, stream, sharding = flags.pop("kind"), flags.pop("resume"), flags.pop("stream"), taken(flags)
    source, strength, mask, n, size = (flags.pop(name) for name in ("source", "strength", "mask", "n", "size"))
    if list_classes:
        bundle = load_bundle(model)
        click.echo(json.dumps(bundle.class_names) if as_json else "\n".join(bundle.class_names))
        return
    if sharding is not None:
        from .shards import run_shards

        shards = _on(model, partial(_shards, flags, (source, strength, mask), n, size, sharding, out, kind))
        return run_shards(shards, sharding, wanted, as_json, started)
    out = plain_place(out, n, MOST)
    target = Target(out, kind, resume=resume, stream=stream)
    check_place(out, target.resume)
    if remake is not None:
        return _remake(remake, model, out, (source, strength, mask), wanted)

    def planned(bundle: "Bundle") -> tuple["Bundle", "Plan", int | None]:
        bundle = bundle if size is None else bundle.up_to(size)
        request, columns = _request(bundle, n=n, **flags, edit=read_edit(bundle, source, strength, mask))
        return bundle, resolve(bundle, request), columns

    bundle, plan, columns = _on(model, planned)
    warn_of_steps(bundle, plan)
    noted = first_note(out, target.kind) if target.resume else None
    opened = wanted.open_as_noted(bundle, "--resume", *noted)[0] if noted else wanted.open(bundle, plan)
    drawing, loaded = Drawing(bundle, plan, opened), time.perf_counter()
    drawn = draw(drawing, replace(target, columns=columns))
    times = {"load": loaded - started, "first": drawn.first - started, "total": time.perf_counter() - started}
    click.echo(_report(drawing, times) if as_json else _summary(drawing, drawn.n, times, out), err=not as_json)


def _shards(flags: dict[str, Any], edit: Edited, n: int | None, size: int | None, sharding: "Sharding",
            out: Path | str, kind: str, bundle: "Bundle") -> "ShardSet":  # fmt: skip
    """The set in shards that the flags ask for."""
    from .edit import read_edit
    from .shards import shard_set

    names = _classes(bundle, flags["classes"])
    return shard_set(bundle, names, flags, read_edit(bundle, *edit), n, size, sharding, out, kind)


def _remake(file: Path, model: Path | None, out: Path, edit: Edited, wanted: "Wanted") -> None:
    """Draw a picture again from its note, and say how the two compare."""
    from cfgdiff.runtime import load_bundle

    from .draw import redraw
    from .edit import noted_model, noted_strength, read_edit
    from .opening import noted_part

    source, strength, mask = edit
    if source is not None and strength is None:
        strength = noted_strength(file)
    bundle = noted_part(load_bundle(model or noted_model(file)), file)
    opened = partial(wanted.open_as_noted, bundle, "--remake")
    click.echo(redraw(file, bundle, out, read_edit(bundle, source, strength, mask), opened), err=True)


def _on(model: Path | None, planned: "Callable[[Bundle], Planned]") -> "Planned":
    """A plan on a model; on None: on the packaged one that takes the fewest rows, or else on that of many steps."""
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.bundle import TURBO
    from cfgdiff.runtime.errors import BadInput

    if model is not None:
        return planned(load_bundle(model))
    try:
        return planned(load_bundle(TURBO))
    except BadInput as error:
        plan = planned(load_bundle())  # a mistake is one here, too
        log.info("model %s passed over: %s", TURBO, error)
        return plan


def _report(drawing: "Drawing", seconds: dict[str, float]) -> str:
    """What --json prints."""
    plan, engine, w = drawing.plan, drawing.engine, drawing.plan.weights.tolist()
    return json.dumps({
        "n": len(plan), "model": plan.bundle.name, "steps": plan.steps, "rows": drawing.rows,
        "engine": engine.name, "precision": engine.precision,
        "sampler": plan.course.sampler, "spacing": plan.course.spacing, "guidance": w[0] if len(set(w)) == 1 else w,
        "seed": plan.request.seed, "seconds": {name: round(value, 4) for name, value in seconds.items()},
    } | (stages_report(drawing) if plan.stages else {}))  # fmt: skip


def _summary(drawing: "Drawing", n: int, seconds: dict[str, float], out: Path) -> str:
    """One line, where `n` pictures were drawn."""
    engine, kept = drawing.engine, len(drawing.plan) - n
    rest = f", {kept} were there" if kept else ""
    drawn = f"{n} picture{'s' * (n != 1)} in {seconds['total']:.1f} s"
    return one_line(f"{drawn} ({engine.name}, {engine.precision}){rest}: {out}")


def _request(bundle: "Bundle", classes: tuple[str, ...], n: int | None, interpolate: tuple[int, int] | None,
             frames: int, guidance: tuple[float, ...] | None, **settings: Any,
             ) -> tuple["Request", int | None]:  # fmt: skip
    """The request of the flags, and the columns of its grid: an interpolation is a row."""
    from cfgdiff.runtime import Request
    from cfgdiff.runtime.guidance import Guidance

    names, settings["stages"] = _classes(bundle, classes), asked_stages(len(bundle.stages), settings)
    if guidance is not None:
        Guidance(guidance)  # all of the list, even where there are fewer pictures
    if interpolate is None:
        indices, frames, columns = list(range(n or 16)), 1, None
        wanted = [names[i % len(names)] for i in indices]
    else:
        if (n or 1) * frames > MOST:
            raise click.UsageError(
                f"--frames: expected at most {MOST} pictures in all, found {n or 1} interpolations of {frames}"
            )
        indices, columns = [row for row in range(n or 1) for _ in range(frames)], frames
        wanted, settings["blend"] = _between(names, interpolate[1], frames, n or 1)
        settings["seed"] = interpolate[0]
    weights = None if guidance is None else [guidance[i // frames % len(guidance)] for i in range(len(indices))]
    return Request(wanted, guidance=weights, indices=indices, **settings), columns


def _classes(bundle: "Bundle", wanted: tuple[str, ...]) -> list[str]:
    """The names of the classes as the model has them. An entry that is a name is not split at its commas."""
    from cfgdiff.runtime.request import class_labels

    known = bundle.class_names
    names = [
        name.strip() for entry in wanted for name in ([entry] if entry in known else entry.split(",")) if name.strip()
    ]
    if not names:
        raise click.UsageError(f"--class NAME is missing; choose from {', '.join(known)}, or all")
    if "all" not in names or "all" in known:
        return [known[label] for label in class_labels(bundle, names)]
    if others := [name for name in names if name != "all"]:
        raise click.UsageError(
            f"--class: expected all or names, found all and {', '.join(others)}; leave out the one or the others"
        )
    return known


def _between(names: list[str], seed: int, frames: int, n: int) -> "tuple[list[str], Blend]":
    """The classes at the one end of n interpolations, and the other end."""
    from cfgdiff.runtime import Blend

    if len(names) > 2:
        raise click.UsageError(
            f"--interpolate: expected one class, or two to go between, found {len(names)}; correct --class"
        )
    shares = [frame / (frames - 1) for frame in range(frames)]
    return names[:1] * (n * frames), Blend(seed, names[-1:] * (n * frames), shares * n)


main = run_command(command)
