"""The model card: bundle.json and the engines' sidecars in readable form, with a grid of samples."""

from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.bundle import DAMAGE, Variant
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.images import grid, save_png
from cfgdiff.runtime.sidecar import engines_beside

from .markdown import table
from .recipe import inputs, recipe

SAMPLES, COLUMNS, ROWS = "samples.png", 10, 8


def write_card(bundle: Bundle, engine: Engine) -> None:
    """Write README.md and samples.png, a column for each of the first ten classes, into the bundle's folder.

    A super-resolution stage by itself has no pictures of its own.
    """
    if bundle.stage:
        write_whole(bundle.path / "README.md", f"{card(bundle)}\n".encode())
        return
    columns = bundle.class_names[:COLUMNS]
    pictures = np.concatenate([batch for _, batch in generate(engine, bundle, columns * ROWS)])
    save_png(bundle.path / SAMPLES, grid(pictures, columns=len(columns)))
    heading, rest = card(bundle).split("\n", 1)
    shown = f"![Samples, a column a class]({SAMPLES})\n\n*A column a class ({', '.join(columns)}), seed 0, not picked.*"
    write_whole(bundle.path / "README.md", f"{heading}\n\n{shown}\n{rest}\n".encode())


def card(bundle: Bundle) -> str:
    """Markdown, also for terminals. Raises `Failure` where an entry of bundle.json or a sidecar cannot be shown."""
    try:
        return _card(bundle)
    except DAMAGE as error:
        if isinstance(error, Failure):
            raise
        problem = f"provenance or evaluation is not as expected ({type(error).__name__}: {error})"
        raise Failure(f"{bundle.path / 'bundle.json'}: {problem}; export the model again") from None


def _card(bundle: Bundle) -> str:
    schedule, defaults, (c, h, w) = bundle.schedule, bundle.defaults, bundle.image_shape
    where = f"inside sigma / alpha {defaults.interval}" if defaults.interval else "at every noise level"
    lines = [
        f"# {bundle.name}", "",
        "A class-conditional diffusion model with classifier-free guidance inside its graph: "
        f"{w}x{h} pictures, {c} channels,",
        f"{len(bundle.class_names)} classes: {', '.join(bundle.class_names)}.", "",
        "    cfgdiff-run --model FOLDER --class NAME --n 64", "",
        f"- schedule: {schedule.kind}, T = {schedule.T}, predicts {schedule.prediction}, data_std {schedule.data_std}",
        f"- defaults: {defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance} {where}",
        *_cascade(bundle),
        *([f"- fitted steps (cfgdiff fit-steps): {', '.join(map(str, bundle.fitted))}"] if bundle.fitted else []),
        *(f"- {key}: {_inline(value)}" for key, value in bundle.provenance.items()),
        *_evaluated(bundle.evaluation),
        *_graph(bundle),
        "", "Against float32 on ONNX Runtime, from the same noise "
        "(prediction and x0: largest relative error over noise levels;",
        "features: share of the distance between unrelated pictures):", "",
        table(["graph", "MB", *MEASURES, "certificate"], [
            [v.graph, _megabytes(bundle, v.graph), *_of_graph(v)] for v in bundle.variants.values()
        ]),
    ]  # fmt: skip
    if engines := engines_beside(bundle.path):
        rows = [
            [e.path.name, _megabytes(bundle, e.path.name), f"{e.key.module} {e.key.version}", "+".join(e.key.sm),
             f"{e.key.profile[0]}-{e.key.profile[2]}", *_measures(e.certificate), _verdict(e.certificate)]
            for e in engines
        ]  # fmt: skip
        heads = ["TensorRT engine", "MB", "module", "SM", "batch", *MEASURES, "certificate"]
        lines += ["", table(heads, rows)]
    return "\n".join(lines)


def _cascade(bundle: Bundle) -> list[str]:
    """What a super-resolution stage enlarges; the stages of a cascade, a line each."""
    lines = list[str]()
    if known := bundle.condition:
        noise = f"with the noise of t = {known.noise:g} by default, of at most {known.most:g} in training"
        lines.append(f"- super-resolution stage {known.stage}: enlarges {known.factor} times, {noise}")
    for stage in bundle.stages:
        (_, h, w), defaults = stage.image_shape, stage.defaults
        how = f"{defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance}"
        lines.append(f"- {stage.path.name}: enlarges them to {w}x{h}; defaults: {how}; see its own folder")
    return lines


def _evaluated(evaluation: dict[str, Any]) -> list[str]:
    """The results of `cfgdiff eval`, a line each."""
    if not evaluation:
        return []
    used, lines = evaluation["protocol"], []
    for key, name in evaluation.get("called", {}).items():
        real = evaluation.get("held-out pictures", {}).get(key)
        reference = "" if real is None else f" (real pictures: {real:.4g})"
        lines.append(f"- {name}: {evaluation['quality'][key]['mean']:.4g}{reference}")
    if "class accuracy" in evaluation:
        lines.append(f"- class accuracy: {evaluation['class accuracy']:.1%}, by a classifier")
    if "nearest" in evaluation:
        near = evaluation["nearest"]["samples"]
        distance = f"LPIPS {near['mean']:.3f} in the mean of {near['n']} samples, {near['copies']} copies"
        lines.append(f"- nearest training picture: {distance}")
    settings = f"guidance {used['guidance']}, {used['evaluations']} evaluations of {used['sampler']}"
    how = f"{evaluation['n']} samples, {settings}; features: {used['features']}"
    return ["", f"Measured by cfgdiff eval ({how}):", "", *lines]


def _graph(bundle: Bundle) -> list[str]:
    """The graph's contract, and how to draw with it alone."""
    factor, steps = bundle.condition.factor if bundle.condition else None, bundle.defaults.steps
    described = inputs(len(bundle.class_names), bundle.schedule.T, bundle.guidance_input, factor)
    timesteps = bundle.fitted[steps].timesteps if bundle.few_steps else None
    how = recipe(bundle.schedule, steps, bundle.defaults.guidance, timesteps, factor)
    lines = [f"- {name}: {text}" for name, text in described.items()]
    return ["", "The graphs take and give, with any B and G:", "", *lines, "", "To draw with a graph alone (DDIM):", "",
            *(f"{i}. {line}" for i, line in enumerate(how, 1))]  # fmt: skip


MEASURES = ["prediction", "x0", "dB", "features"]


def _of_graph(variant: Variant) -> list[str]:
    """The measures and the verdict of a variant. Float32 is the reference; only its rows are checked."""
    if variant.precision == "float32" and variant.certificate and variant.certificate.passed:
        return ["-"] * len(MEASURES) + ["the reference; its rows passed"]
    return [*_measures(variant.certificate), _verdict(variant.certificate)]


def _measures(certificate: Certificate | None) -> list[str]:
    if certificate is None:
        return ["-"] * len(MEASURES)
    by_level = [f"{max(errors.values()):.1e}" if errors else "-" for errors in (certificate.prediction, certificate.x0)]
    return by_level + ["-" if value is None else str(value) for value in (certificate.psnr_db, certificate.features)]


def _verdict(certificate: Certificate | None) -> str:
    if certificate is None:
        return "none"
    if not certificate.passed:
        return "failed: " + "; ".join(certificate.failures[:2])
    return f"passed, {certificate.pictures} pictures"


def _megabytes(bundle: Bundle, file: str) -> str:
    path = bundle.path / file
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else "missing"


def _inline(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
