"""The model card: what bundle.json and the engines' sidecars say, for people, with a grid of samples beside it."""

from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.bundle import DAMAGE, Variant
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.images import grid, save_png
from cfgdiff.runtime.sidecar import engines_beside

from .markdown import table
from .recipe import inputs, recipe

SAMPLES, COLUMNS, ROWS = "samples.png", 10, 8


def write_card(bundle: Bundle, engine: Engine) -> None:
    """README.md and samples.png, a column for each of the first ten classes, into the bundle's folder."""
    columns = bundle.class_names[:COLUMNS]
    pictures = np.concatenate([batch for _, batch in generate(engine, bundle, columns * ROWS)])
    save_png(bundle.path / SAMPLES, grid(pictures, columns=len(columns)))
    heading, rest = card(bundle).split("\n", 1)
    shown = f"![Samples, a column a class]({SAMPLES})\n\n*A column a class ({', '.join(columns)}), seed 0, not picked.*"
    write_whole(bundle.path / "README.md", f"{heading}\n\n{shown}\n{rest}\n".encode())


def card(bundle: Bundle) -> str:
    """Markdown that a terminal shows as well. Raises `Failure` where an entry of bundle.json or a sidecar cannot be shown."""
    try:
        return _card(bundle)
    except DAMAGE as error:
        if isinstance(error, Failure):
            raise
        what = f"provenance, evaluation or a certificate is not as expected ({type(error).__name__}: {error})"
        raise Failure(f"{bundle.path / 'bundle.json'}: {what}; export the model again") from None


def _card(bundle: Bundle) -> str:
    schedule, defaults, (c, h, w) = bundle.schedule, bundle.defaults, bundle.image_shape
    where = f"inside sigma / alpha {defaults.interval}" if defaults.interval else "at every noise level"
    lines = [
        f"# {bundle.name}", "",
        f"A class-conditional diffusion model with classifier-free guidance inside its graph: {w}x{h} pictures, {c} channels,",
        f"{len(bundle.class_names)} classes: {', '.join(bundle.class_names)}.", "",
        "    cfgdiff-run --model FOLDER --class NAME --n 64", "",
        f"- schedule: {schedule.kind}, T = {schedule.T}, predicts {schedule.prediction}, data_std {schedule.data_std}",
        f"- defaults: {defaults.sampler}, {defaults.steps} steps, guidance {defaults.guidance} {where}",
        *([f"- fitted steps (cfgdiff fit-steps): {', '.join(map(str, bundle.fitted))}"] if bundle.fitted else []),
        *(f"- {key}: {_inline(value)}" for key, value in bundle.provenance.items()),
        *_evaluated(bundle.evaluation),
        *_graph(bundle),
        "", "Against float32 on ONNX Runtime, from the same noise (prediction and x0: largest relative error over noise levels;",
        "features: share of the distance between unrelated pictures):", "",
        table(["graph", "MB", *FOUND, "certificate"], [
            [v.graph, _megabytes(bundle, v.graph), *_of_graph(v)] for v in bundle.variants.values()
        ]),
    ]  # fmt: skip
    if engines := engines_beside(bundle.path):
        rows = [
            [e.path.name, _megabytes(bundle, e.path.name), f"{e.key.module} {e.key.version}", "+".join(e.key.sm),
             "-".join(map(str, (e.key.profile[0], e.key.profile[2]))), *_found(e.certificate), _verdict(e.certificate)] for e in engines
        ]  # fmt: skip
        lines += ["", table(["TensorRT engine", "MB", "module", "SM", "batch", *FOUND, "certificate"], rows)]
    return "\n".join(lines)


def _evaluated(found: dict[str, Any]) -> list[str]:
    """What `cfgdiff eval` found, a line each."""
    if not found:
        return []
    used, lines = found["protocol"], []
    for key, name in found.get("called", {}).items():
        real = found.get("held-out pictures", {}).get(key)
        lines.append(f"- {name}: {found['quality'][key]['mean']:.4g}" + ("" if real is None else f" (real pictures: {real:.4g})"))
    if "class accuracy" in found:
        lines.append(f"- class accuracy: {found['class accuracy']:.1%}, by a classifier")
    if "nearest" in found:
        near = found["nearest"]["samples"]
        lines.append(f"- nearest training picture: LPIPS {near['mean']:.3f} in the mean of {near['n']} samples, {near['copies']} copies")
    how = f"{found['n']} samples, guidance {used['guidance']}, {used['evaluations']} evaluations of {used['sampler']}"
    return ["", f"Measured by cfgdiff eval ({how}; features: {used['features']}):", "", *lines]


def _graph(bundle: Bundle) -> list[str]:
    """The graph's contract, and how to draw with it alone."""
    described = inputs(len(bundle.class_names), bundle.schedule.T)
    how = recipe(bundle.schedule, bundle.defaults.steps, bundle.defaults.guidance)
    lines = [f"- {name}: {text}" for name, text in described.items()]
    return ["", "The graphs take and give, with any B and G:", "", *lines, "", "To draw with a graph alone (DDIM):", "",
            *(f"{i}. {line}" for i, line in enumerate(how, 1))]  # fmt: skip


FOUND = ["prediction", "x0", "dB", "features"]


def _of_graph(variant: Variant) -> list[str]:
    """What was found of a variant. Float32 is not held against itself, but its rows are checked as all others' are."""
    passed = (variant.certificate or {}).get("passed")
    if variant.precision == "float32" and passed:
        return ["-"] * len(FOUND) + ["the reference; its rows passed"]
    return [*_found(variant.certificate), _verdict(variant.certificate)]


def _found(certificate: dict[str, Any] | None) -> list[str]:
    found = (certificate or {}).get("found", {})
    worst = [f"{max(found[key].values()):.1e}" if key in found else "-" for key in ("prediction", "x0")]
    return worst + [str(found.get(key, "-")) for key in ("psnr_db", "features")]


def _verdict(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "none"
    if not certificate["passed"]:
        return "failed: " + "; ".join(certificate["failures"][:2])
    return f"passed, {certificate['found']['pictures']} pictures"


def _megabytes(bundle: Bundle, file: str) -> str:
    path = bundle.path / file
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else "missing"


def _inline(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
