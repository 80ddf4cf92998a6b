"""`cfgdiff export` and `cfgdiff verify`: bundles made, and what they are worth. Heavy packages are imported inside the commands."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .flags import INTERVAL, typed_flags
from .train import PATH, plugin_option

if TYPE_CHECKING:
    from cfgdiff.export.source import Source
    from cfgdiff.runtime import Bundle

PACKAGED = "the packaged model"


@click.command(
    epilog="""\b
Examples:
  cfgdiff export runs/smoke
  cfgdiff export runs/small --fp16 --int8 --out exported/small --steps 20 --guidance 1.6
  cfgdiff export --from-bundle --fp16 --tensorrt --out exported/cifar10
  cfgdiff export --from-bundle exported/small --tensorrt --batch 1,16,64 --sm 89 --out exported/small --force

--from-bundle needs no PyTorch. Exit code 1 where --tensorrt was asked for and no engine could be built."""
)
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--from-bundle", "from_bundle", metavar="[BUNDLE]", is_flag=False, flag_value=PACKAGED,
              help="Export from a bundle's float32 graph (by default the packaged model's) instead of a checkpoint.")  # fmt: skip
@click.option("--out", type=PATH, help="Folder of the bundle. Default: exported/<name of the run or bundle>.")
@click.option("--sampler", help="Default sampler of the bundle. Without it: dpmpp-2m, or the source bundle's.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Default number of evaluations. Without it: 20, or the source bundle's."
)
@click.option("--guidance", type=float, help="Default guidance w. Without it: 1.5, or the source bundle's.")
@click.option("--guidance-interval", "interval", metavar="LO,HI", type=INTERVAL,
              help="Guide only where sigma / alpha lies between these. Without it: everywhere, or the source bundle's.")  # fmt: skip
@click.option("--fp16", is_flag=True, help="Add a variant that computes in float16, for GPUs.")
@click.option(
    "--int8",
    is_flag=True,
    help="Add a variant with convolutions in int8: smaller and, on CPUs, faster, a little less exact.",
)
@click.option(
    "--tensorrt/--no-tensorrt", default=None, help="Build TensorRT engines. Default: where TensorRT is installed."
)
@click.option(
    "--batch",
    default="1,64,256",
    show_default=True,
    metavar="MIN,OPT,MAX",
    help="Pictures in a batch that engines take.",
)
@click.option(
    "--sm", metavar="NN[,NN...]", help="GPU architectures, as 86,89,120. Default: this GPU's; without one, 86,89,120."
)
@plugin_option
@click.option("--force", is_flag=True, help="Replace a bundle that is already there; engines that still fit are kept.")
def export(checkpoint: Path | None, from_bundle: str | None, out: Path | None, fp16: bool, int8: bool, tensorrt: bool | None, batch: str,
           sm: str | None, plugins: tuple[Path, ...], force: bool, **defaults: Any) -> None:  # fmt: skip
    """Export a run or checkpoint (its averaged weights), or a bundle anew, as a bundle that cfgdiff-run uses."""
    if (checkpoint is None) == (from_bundle is None):
        given = "neither" if checkpoint is None else "both"
        raise click.UsageError(f"expected a checkpoint (a run's folder) or --from-bundle [BUNDLE], found {given}")
    for name, flag in typed_flags(click.get_current_context()).items():
        if tensorrt is False and name in ("batch", "sm"):
            raise click.UsageError(f"{flag}: is for TensorRT engines, found --no-tensorrt; leave one of them out")
        if checkpoint is None and name == "plugins":
            raise click.UsageError(f"{flag}: is for networks of a checkpoint, found --from-bundle; leave it out")
    chosen = _chosen_defaults(**defaults)
    target = out or Path("exported") / _name(checkpoint, from_bundle)
    from cfgdiff.export.tensorrt import parse_profile, parse_sm
    from cfgdiff.export.write import check_target, write_bundle

    check_target(target, force)
    build = None if tensorrt is False else _builder(parse_profile(batch), parse_sm(sm) if sm else None)
    source = _source(checkpoint, from_bundle, target.resolve().name, chosen, plugins)
    precisions = tuple(name for name, wanted in (("float16", fp16), ("int8", int8)) if wanted)
    report = write_bundle(source, target, precisions, force, build, say)
    if errors := report.errors:
        say(f"ONNX Runtime against PyTorch: largest relative error {errors['graph']}")
        say(f"weights stored as float16: largest relative change of the prediction {errors['float16_weights']}")
        say(
            f"16 pictures of the bundle against PyTorch in float32: {errors['picture_psnr_db']} dB (48 is one grey level)"
        )
    for name, variant in report.bundle.variants.items():
        say(f"{name}: {summary(variant.certificate or {}, name == 'float32')}")
    say(f"bundle {target}, {report.megabytes:.1f} MB; use it with: cfgdiff-run --model {target} --class NAME")
    if report.build_error is not None:
        say(f"no TensorRT engine: {report.build_error}")
        if tensorrt:
            raise SystemExit(1)


def say(line: str) -> None:
    """A line for people, on standard error."""
    click.echo(line, err=True)


def summary(certificate: dict[str, Any], reference: bool = False) -> str:
    """A certificate in one line; `reference`: that of what all others are compared with."""
    if not certificate["passed"]:
        return "FAILED: " + "; ".join(certificate["failures"])
    if reference:
        return (
            "passed; its rows agree with each other and with the guidance equation, and the others are compared with it"
        )
    found = certificate["found"]
    level, error = max(found["prediction"].items(), key=lambda entry: entry[1])
    clean = max(found["x0"].values())
    return (f"passed; prediction within {error:.1e} of float32 (at ln(sigma / alpha) = {level}), x0 within {clean:.1e}, "
            f"{found['pictures']} pictures {found['psnr_db']} dB, features {found['features']}")  # fmt: skip


def _name(checkpoint: Path | None, from_bundle: str | None) -> str:
    if checkpoint is not None:
        run = checkpoint.resolve()
        return run.parent.parent.name if run.parent.name == "checkpoints" else run.name
    return "cifar10-small" if from_bundle == PACKAGED else Path(str(from_bundle)).resolve().name


def _chosen_defaults(**defaults: Any) -> dict[str, Any]:
    """The defaults that were given by flags, checked."""
    from cfgdiff.runtime.errors import named
    from cfgdiff.runtime.guidance import Guidance
    from cfgdiff.runtime.samplers import SAMPLERS

    given = {key: value for key, value in defaults.items() if value is not None}
    if "sampler" in given:
        given["sampler"] = named("--sampler", "sampler", given["sampler"], SAMPLERS)
    Guidance((given.get("guidance", 1.0),), given.get("interval"))
    return given


def _source(
    checkpoint: Path | None, from_bundle: str | None, name: str, chosen: dict[str, Any], plugins: tuple[Path, ...]
) -> "Source":
    from cfgdiff.export import source
    from cfgdiff.runtime.bundle import Defaults

    if checkpoint is None:
        return source.from_bundle(None if from_bundle == PACKAGED else Path(str(from_bundle)), name, chosen)
    source.check_source(checkpoint)
    from cfgdiff.trainer.checkpoint import load_model
    from cfgdiff.trainer.registry import load_plugins

    load_plugins(plugins)
    defaults = replace(Defaults("dpmpp-2m", 20, 1.5, None), **chosen)
    return source.from_checkpoint(load_model(checkpoint), name, defaults)


def _builder(profile: tuple[int, int, int], sm: tuple[str, ...] | None) -> "Callable[[Bundle], None]":
    """What builds the engines beside a bundle. Raises `BadInput` for architectures that the TensorRT here cannot build for."""
    from cfgdiff.export.tensorrt import build_engines, find_module, plan_key
    from cfgdiff.runtime.errors import BadInput, Failure

    if sm is not None:
        try:
            plan_key(find_module(), "", "float32", profile, sm)
        except BadInput:
            raise
        except Failure:
            pass  # no TensorRT at all: said once the bundle is written

    def build(bundle: "Bundle") -> None:
        for built in build_engines(bundle, profile, sm, _show):
            _show("", 0, 0)
            size = built.path.stat().st_size / 1e6
            say(f"{built.path.name}: {size:.1f} MB, batch {profile[0]}-{profile[2]}, SM {'+'.join(built.key.sm)}")

    return build


def _show(phase: str, done: int, total: int) -> None:
    """The phase of a build, on one line of a terminal that the next one overwrites."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{phase} {done}/{total}" if phase else "\r\033[K", nl=False, err=True)


@click.command(
    epilog="""\b
Examples:
  cfgdiff verify exported/small
  cfgdiff verify exported/small --engine tensorrt
  cfgdiff verify --n 32 --no-store

Exit code 1 where anything fails, or where nothing could be verified."""
)
@click.argument("bundle", type=PATH, required=False)
@click.option("--engine", type=click.Choice(["cpu", "cuda", "openvino", "tensorrt"]),
              help="Verify this alone. Default: all that work here.")  # fmt: skip
@click.option(
    "--n", default=256, show_default=True, type=click.IntRange(min=8), help="Pictures to compare with float32's."
)
@click.option("--store/--no-store", default=True, show_default=True,
              help="Keep the certificates of cpu and tensorrt in the bundle; those of cuda and openvino are shown only.")  # fmt: skip
def verify(bundle: Path | None, engine: str | None, n: int, store: bool) -> None:
    """Compare all variants and engines of a bundle with float32 on ONNX Runtime, and certify them.

    Rows must not depend on their neighbours and guidance must be uncond + w (cond - uncond); predictions must be float32's at every
    noise level; and pictures from the same noise must be float32's in decibels and in features.
    """
    from cfgdiff.export.certify import candidates, certify
    from cfgdiff.export.verify import reference
    from cfgdiff.runtime import load_bundle, open_engine
    from cfgdiff.runtime.errors import Failure

    found = load_bundle(bundle)
    chosen = candidates(found, engine)
    if not chosen:
        raise Failure(
            f"{found.path}: has no TensorRT engine; build one with: cfgdiff export --from-bundle {found.path} --tensorrt"
        )
    failed, passed, skipped = 0, 0, dict[str, list[str]]()
    with click.progressbar(
        length=n * (1 + len(chosen)), label="drawing", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        against = reference(open_engine(found, "cpu", "float32"), found, n, bar.update)
        for candidate, answer in certify(chosen, found, against, bar.update):
            if isinstance(answer, Failure):
                skipped.setdefault(str(answer), []).append(candidate.name)
                continue
            asked = candidate.own or engine == candidate.kind  # else nothing takes it unless it is named
            failed, passed = failed + (asked and not answer["passed"]), passed + answer["passed"]
            said = summary(answer, (candidate.kind, candidate.precision) == ("cpu", "float32"))
            say(f"{candidate.name}: {said}" + ("" if asked or answer["passed"] else "; it is taken by name only"))
            if store:
                candidate.store(answer)
    for reason, names in skipped.items():
        say(f"{', '.join(names)}: not verified: {reason}")
    if failed or not passed:
        raise SystemExit(1)
