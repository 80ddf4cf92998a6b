"""The flags of a cascade's super-resolution stages, and their checkpoints for `cfgdiff export`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .flags import Numbers

if TYPE_CHECKING:
    from cfgdiff.export.source import Source
    from cfgdiff.runtime import Stage
    from cfgdiff.trainer.weights import LoadedModel

    from .draw import Drawing

STEPS, GUIDANCE = 8, 1.0  # defaults of an exported stage: what a picture is of, the base has decided
NAMES = ("stage_steps", "stage_guidance", "stage_noise")


def stage_options(command: Callable[..., None]) -> Callable[..., None]:
    """--stage-steps, --stage-guidance and --stage-noise: a number for all stages, or one for each."""
    whole, numbers = Numbers("N[,N...] as in 8 or 12,6", number=int), Numbers("numbers as in 1 or 1.5,1")
    for name, kind, metavar, text in reversed((
        ("--stage-steps", whole, "N[,N...]", "Network evaluations of each super-resolution stage."),
        ("--stage-guidance", numbers, "W[,W...]", "Guidance w of each stage; 1 is none."),
        ("--stage-noise", numbers, "T[,T...]", "Timestep whose noise the smaller picture gets in each stage."),
    )):  # fmt: skip
        command = click.option(name, type=kind, metavar=metavar, help=text)(command)
    return command


def asked_stages(count: int, flags: dict[str, Any]) -> "tuple[Stage, ...]":
    """What the flags ask of each of `count` stages; they are taken out of `flags`. Raises `UsageError`, naming one."""
    from cfgdiff.runtime import Stage

    given = {name: flags.pop(name) for name in NAMES}
    for name, values in given.items():
        flag = "--" + name.replace("_", "-")
        if values and not count:
            raise click.UsageError(f"{flag}: is for the stages of a cascade, found none; leave it out")
        if values and len(values) not in (1, count):
            raise click.UsageError(f"{flag}: expected 1 or {count} numbers, one for each stage, found {len(values)}")
    each = {name.removeprefix("stage_"): values for name, values in given.items() if values}
    return tuple(Stage(**{name: values[k % len(values)] for name, values in each.items()}) for k in range(count))


def stages_report(drawing: "Drawing") -> dict[str, Any]:
    """What --json prints of each network, the base first: rows, and billions of multiply-adds in all of them."""
    entries, plans = list[dict[str, Any]](), (drawing.plan, *drawing.plan.stages)
    for model, plan, counter in zip(drawing.bundle.models, plans, drawing.counters, strict=True):
        gmac = None if model.gmac is None else round(counter.rows * model.gmac, 3)
        w = float(plan.weights[0])
        entries.append({
            "size": model.image_shape[1], "steps": plan.steps, "guidance": w, "sampler": plan.course.sampler,
            "engine": counter.name, "precision": counter.precision, "rows": counter.rows, "gmac": gmac,
        })  # fmt: skip
    known = [entry["gmac"] for entry in entries if entry["gmac"] is not None]
    return {"stages": entries, "gmac": round(sum(known), 3) if len(known) == len(entries) else None}


def load_stages(checkpoints: list[Path], below: "LoadedModel") -> "list[LoadedModel]":
    """The stages above `below`. Raises `Failure`, naming the run that does not belong there."""
    from cfgdiff.export import source
    from cfgdiff.trainer.weights import load_model

    models = [below]
    for path in checkpoints:
        source.check_source(path)
        model = load_model(path)
        source.check_above(path, model, models[-1])
        models.append(model)
    return models[1:]


def stage_sources(models: "list[LoadedModel]", name: str, asked: "tuple[Stage, ...]") -> "list[Source]":
    """The graphs of loaded stages."""
    from cfgdiff.export import source
    from cfgdiff.runtime.bundle import Defaults

    sources = []
    for place, (model, settings) in enumerate(zip(models, asked, strict=True), start=1):
        steps, w = settings.steps or STEPS, GUIDANCE if settings.guidance is None else settings.guidance
        defaults = source.checked_defaults(model, Defaults("dpmpp-2m", steps, w, None))
        sources.append(source.from_checkpoint(model, f"{name}-stage-{place}", defaults, place, settings.noise))
    return sources


def stages_of_bundle(path: Path | None, name: str, flags: dict[str, Any]) -> "list[Source]":
    """The graphs of the stages in a bundle, with other defaults where the flags name them."""
    from cfgdiff.export import source
    from cfgdiff.runtime import load_bundle

    stages, sources = load_bundle(path).stages, []
    asked = asked_stages(len(stages), flags)
    for place, (stage, settings) in enumerate(zip(stages, asked, strict=True), start=1):
        changes = {key: getattr(settings, key) for key in ("steps", "guidance")}
        made = source.from_bundle(stage.path, f"{name}-stage-{place}", {k: v for k, v in changes.items() if v})
        if settings.noise is not None:
            made = replace(made, description=source.with_noise(made.description, settings.noise))
        sources.append(made)
    return sources
