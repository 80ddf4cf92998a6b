"""`cfgdiff export` writes bundles. Heavy packages are imported inside the command."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cfgdiff.export.precisions import PRECISIONS

from .flags import INTERVAL, typed_flags
from .stages import NAMES, asked_stages, load_stages, stage_options, stage_sources, stages_of_bundle
from .train import PATH, plugin_option
from .verify import say, summary

if TYPE_CHECKING:
    from cfgdiff.export.source import Source
    from cfgdiff.export.write import Report
    from cfgdiff.runtime import Bundle

PACKAGED = "the packaged model"
DERIVED = {name: precision for name, precision in PRECISIONS.items() if precision.flag}


def _variant_options(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for each variant that can be added."""
    for name, precision in reversed(DERIVED.items()):
        command = click.option(precision.flag, name, is_flag=True, help=precision.help)(command)
    return command


@click.command(
    epilog="""\b
Examples:
  cfgdiff export runs/smoke
  cfgdiff export runs/small --fp16 --int8 --out exported/small --steps 20 --guidance 1.6
  cfgdiff export --from-bundle --fp16 --tensorrt --out exported/cifar10
  cfgdiff export --from-bundle exported/small --tensorrt --batch 1,16,64 --sm 89 --out exported/small --force
  cfgdiff export --from-bundle cifar10-turbo --triton models
  cfgdiff export runs/base16 runs/sr32 --out exported/cascade --stage-steps 8 --stage-guidance 1

--from-bundle needs no PyTorch. Exit code 1 where --tensorrt was asked for and no engine could be built."""
)
@click.argument("checkpoints", type=PATH, nargs=-1, metavar="[CHECKPOINT] [STAGE...]")
@click.option("--from-bundle", "from_bundle", metavar="[BUNDLE]", is_flag=False, flag_value=PACKAGED,
              help="Export from a bundle's float32 graph (by default the packaged model's) "
                   "instead of a checkpoint.")  # fmt: skip
@click.option("--out", type=PATH, help="Folder of the bundle. Default: exported/<name of the run or bundle>.")
@click.option("--sampler", help="Default sampler of the bundle. Without it: dpmpp-2m, or the source bundle's.")
@click.option("--steps", type=click.IntRange(min=1),
              help="Default number of evaluations. Without it: 20, or the source bundle's.")  # fmt: skip
@click.option("--guidance", type=float, help="Default guidance w. Without it: 1.5, or the source bundle's.")
@click.option("--guidance-interval", "interval", metavar="LO,HI", type=INTERVAL,
              help="Guide only where sigma / alpha lies between these. "
                   "Without it: everywhere, or the source bundle's.")  # fmt: skip
@stage_options
@_variant_options
@click.option("--tensorrt/--no-tensorrt", default=None,
              help="Build TensorRT engines. Default: where TensorRT is installed.")  # fmt: skip
@click.option("--batch", default="1,64,256", show_default=True, metavar="MIN,OPT,MAX",
              help="Pictures in a batch that engines take.")  # fmt: skip
@click.option("--sm", metavar="NN[,NN...]",
              help="GPU architectures, as 86,89,120. Default: this GPU's; without one, 86,89,120.")  # fmt: skip
@click.option("--triton", type=PATH, metavar="DIR",
              help="Write a model repository for Triton Inference Server into this new folder, instead of a bundle. "
                   "With --fp16, --int8 or --tensorrt: of what the bundle has of these.")  # fmt: skip
@plugin_option
@click.option("--force", is_flag=True, help="Replace a bundle that is already there; engines that still fit are kept.")
def export(
    checkpoints: tuple[Path, ...],
    from_bundle: str | None,
    out: Path | None,
    plugins: tuple[Path, ...],
    force: bool,
    triton: Path | None,
    **flags: Any,
) -> None:
    """Export a run or checkpoint (its averaged weights), or a bundle anew, as a bundle that cfgdiff-run uses.

    A STAGE is a run of a super-resolution preset, as sr-16-32. It enlarges what the network before it draws.
    """
    checkpoint = checkpoints[0] if checkpoints else None
    if triton is not None:
        return _export_for_triton(triton, from_bundle, flags)
    tensorrt, batch, sm = (flags.pop(name) for name in ("tensorrt", "batch", "sm"))
    of_stages = {name: flags.pop(name) for name in NAMES}
    _refuse_idle_flags(checkpoint, from_bundle, tensorrt)
    precisions = tuple(name for name in DERIVED if flags.pop(name))
    defaults = _chosen_defaults(**flags)
    target = out or Path("exported") / _name(checkpoint, from_bundle)
    from cfgdiff.export.tensorrt import parse_profile, parse_sm
    from cfgdiff.export.write import check_target, write_bundle

    check_target(target, force)
    build = None if tensorrt is False else _builder(parse_profile(batch), parse_sm(sm) if sm else None)
    source, *stages = _sources(checkpoints, from_bundle, target.resolve().name, defaults, plugins, of_stages)
    report = write_bundle(source, target, precisions, force, build, say, stages)
    _say_report(report, target)
    if tensorrt and report.build_error is not None:
        raise SystemExit(1)


def _export_for_triton(target: Path, from_bundle: str | None, flags: dict[str, Any]) -> None:
    tensorrt, precisions = bool(flags["tensorrt"]), [name for name in DERIVED if flags[name]]
    typed = typed_flags(click.get_current_context())
    if from_bundle is None or "checkpoints" in typed:
        then = f"cfgdiff export --from-bundle BUNDLE --triton {target}"
        raise click.UsageError(f"--triton: expected --from-bundle [BUNDLE]; export a checkpoint first, then: {then}")
    for name, flag in typed.items():
        if name not in ("triton", "from_bundle", "tensorrt", *DERIVED) or (name == "tensorrt" and not tensorrt):
            raise click.UsageError(f"{flag}: changes a bundle, found --triton, which takes one as it is; leave it out")
    if len(precisions) > 1:
        raise click.UsageError(f"--triton: expected one of {' and '.join(DERIVED[name].flag for name in precisions)}")
    from cfgdiff.export.triton import write_repository

    from .opening import load_single

    bundle = load_single(None if from_bundle == PACKAGED else from_bundle, "Triton's loop steps one network")
    precision = next(iter(precisions), "float32")
    model, network = write_repository(bundle, target, precision, tensorrt)
    say(f"model repository {target}: {model}, which draws, and {network}")
    say(f"start it, where this cfgdiff is installed, with: tritonserver --model-repository={target.resolve()}")


def _refuse_idle_flags(checkpoint: Path | None, from_bundle: str | None, tensorrt: bool | None) -> None:
    if (checkpoint is None) == (from_bundle is None):
        given = "neither" if checkpoint is None else "both"
        raise click.UsageError(f"expected a checkpoint (a run's folder) or --from-bundle [BUNDLE], found {given}")
    for name, flag in typed_flags(click.get_current_context()).items():
        if tensorrt is False and name in ("batch", "sm"):
            raise click.UsageError(f"{flag}: is for TensorRT engines, found --no-tensorrt; leave one of them out")
        if checkpoint is None and name == "plugins":
            raise click.UsageError(f"{flag}: is for networks of a checkpoint, found --from-bundle; leave it out")


def _say_report(report: "Report", target: Path) -> None:
    if errors := report.errors:
        psnr = errors["picture_psnr_db"]
        say(f"ONNX Runtime against PyTorch: largest relative error {errors['graph']}")
        say(f"weights stored as float16: largest relative change of the prediction {errors['float16_weights']}")
        say(f"16 pictures of the bundle against PyTorch in float32: {psnr} dB (48 is one grey level)")
    for model in report.bundle.models:
        where = f"{model.path.name}, " if model.stage else ""
        for name, variant in model.variants.items():
            if variant.certificate is not None:
                say(f"{where}{name}: {summary(variant.certificate, name == 'float32')}")
    say(f"bundle {target}, {report.megabytes:.1f} MB; use it with: cfgdiff-run --model {target} --class NAME")
    if report.build_error is not None:
        say(f"no TensorRT engine: {report.build_error}")


def _name(checkpoint: Path | None, from_bundle: str | None) -> str:
    if checkpoint is not None:
        run = checkpoint.resolve()
        return run.parent.parent.name if run.parent.name == "checkpoints" else run.name
    return "cifar10-small" if from_bundle == PACKAGED else Path(str(from_bundle)).resolve().name


def _chosen_defaults(**defaults: Any) -> dict[str, Any]:
    """The defaults given by flags, checked."""
    from cfgdiff.runtime.errors import named
    from cfgdiff.runtime.guidance import Guidance
    from cfgdiff.runtime.samplers import SAMPLERS

    given = {key: value for key, value in defaults.items() if value is not None}
    if "sampler" in given:
        given["sampler"] = named("sampler", "sampler", given["sampler"], SAMPLERS)
    Guidance((given.get("guidance", 1.0),), given.get("interval"))
    return given


def _sources(checkpoints: tuple[Path, ...], from_bundle: str | None, name: str, chosen: dict[str, Any],
             plugins: tuple[Path, ...], of_stages: dict[str, Any]) -> "list[Source]":  # fmt: skip
    """The graphs of all networks, the base first."""
    from cfgdiff.export import source
    from cfgdiff.runtime.bundle import Defaults

    if not checkpoints:
        path = None if from_bundle == PACKAGED else Path(str(from_bundle))
        return [source.from_bundle(path, name, chosen), *stages_of_bundle(path, name, of_stages)]
    checkpoint, *stages = checkpoints
    source.check_source(checkpoint)
    from cfgdiff.trainer.registry import load_plugins
    from cfgdiff.trainer.weights import load_model

    load_plugins(plugins)
    model, asked = load_model(checkpoint), asked_stages(len(stages), of_stages)
    source.check_base(checkpoint, model)
    above = load_stages(stages, model)
    defaults = Defaults("dpmpp-2m", 20, 1.5, None)
    if few := model.sampling.get("fitted"):
        defaults = Defaults("ddim", max(few), 3.0, None)
    defaults = source.checked_defaults(model, replace(defaults, **chosen))
    base = source.from_checkpoint(model, name, defaults, 0 if stages else None)
    return [base, *stage_sources(above, name, asked)]


def _builder(profile: tuple[int, int, int], sm: tuple[str, ...] | None) -> "Callable[[Bundle], None]":
    """A function that builds engines beside a bundle. Raises `BadInput` for architectures that TensorRT lacks."""
    from cfgdiff.export.tensorrt import build_engines, find_module, plan_key
    from cfgdiff.runtime.errors import BadInput, Failure

    if sm is not None:
        try:
            plan_key(find_module(), "", "float32", profile, sm)
        except BadInput:
            raise
        except Failure:
            pass  # TensorRT is missing: reported after the bundle is written

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
