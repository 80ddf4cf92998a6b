"""One page that shows the result of an evaluation, with nothing outside it: no script, no font, no request."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime.files import write_whole

from . import figures
from .evaluate import Result, best
from .machine import describe

COLUMNS, CLASSES = 12, 20


def write_report(folder: Path, result: Result, interpolated: np.ndarray | None, best_of: int) -> Path:
    """report.html and report.json into `folder`, whole. Gives the page's path. Raises `Failure` where it cannot be
    written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined).get_template(
        "report.html.j2"
    )
    summary, machine = result.summary(), describe()
    context = summary | _pictures(result, interpolated, best_of) | _tables(result, summary) | {"machine": machine}
    write_whole(folder / "report.json", (json.dumps(summary | {"machine": machine}, indent=1) + "\n").encode())
    write_whole(folder / "report.html", page.render(context).encode())
    return folder / "report.html"


def _pictures(result: Result, interpolated: np.ndarray | None, best_of: int) -> dict[str, Any]:
    """The pictures and plots of the page."""
    samples, sampling, copies = result.subject.samples, result.subject.sampling, result.copies
    names = sampling.bundle.class_names[:CLASSES]
    each = [np.flatnonzero(samples.labels == k) for k in range(len(names))]
    picked = list(best(samples, best_of)) if sampling.classifier and best_of else []
    real = result.subject.real
    return {
        "grids": _rows(names, samples.pictures, [rows[:COLUMNS] for rows in each]),
        "best": _rows(names, samples.pictures, picked), "n_each": min(map(len, each)),
        "interpolations": "" if interpolated is None
        else figures.png(interpolated, columns=len(interpolated) // min(len(names), 5)),
        "histogram": figures.histogram(copies.samples, copies.held_out) if copies else "",
        "neighbours": figures.neighbour_rows(copies, real.pictures) if copies and real else [],
        "guidance_plot": figures.sweep_plot(result.sweep, "guidance") if result.sweep else "",
        "evaluations_plot": figures.sweep_plot(result.sweep, "evaluations") if result.sweep else "",
    }  # fmt: skip


def _tables(result: Result, summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the page."""
    subject, bundle, classifier = result.subject, result.subject.sampling.bundle, result.subject.sampling.classifier
    counts = np.array(summary["confusion"], float) if "confusion" in summary else np.zeros((0, 0))
    return {
        "name": bundle.name, "class_names": bundle.class_names,
        "repeats": subject.repeats, "quality": quality_rows(summary),
        "n_training": len(subject.data.labels) if subject.data else 0,
        "n_held_out": min(len(subject.data.test_labels), subject.n) if subject.data else 0,
        "copies": summary.get("nearest"), "classifier_accuracy": classifier.accuracy if classifier else None,
        "confusion": (100 * counts / counts.sum(1, keepdims=True).clip(1)).tolist(),
        "accuracy": summary.get("class accuracy"),
        "sweep": sweep_cells(result.sweep), "sweep_n": result.sweep[0]["n"] if result.sweep else 0,
    }  # fmt: skip


def sweep_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of a sweep as text: sampler, guidance, interval, evaluations, Fréchet distance to real pictures and to
    the teacher's, class accuracy."""
    return [[row["sampler"], f"{row['guidance']:g}", _interval(row["interval"]), str(row["evaluations"]),
             f"{row['frechet']:.2f}", f"{row['teacher']:.2f}" if "teacher" in row else "-",
             "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"] for row in rows]  # fmt: skip


def _interval(interval: tuple[float, float] | None) -> str:
    return "all" if interval is None else f"{interval[0]:g} .. {interval[1]:g}"


def _rows(names: list[str], pictures: np.ndarray, rows: list[np.ndarray]) -> list[tuple[str, str]]:
    return [
        (name, figures.png(pictures[row], columns=len(row))) for name, row in zip(names, rows, strict=False) if len(row)
    ]


def quality_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures of all metrics as text: name, of the samples, of real pictures."""
    rows, values, real = [], summary.get("quality", {}), summary.get("held-out pictures", {})
    for key, name in summary.get("called", {}).items():
        spread = f" ± {values[key]['deviation']:.4f}" if values[key]["of"] > 1 else ""
        if f"{key}_std" in values:
            spread += f" (deviation within: {values[f'{key}_std']['mean']:.4f})"
        rows.append((name, f"{values[key]['mean']:.4f}{spread}", f"{real[key]:.4f}" if key in real else "-"))
    return rows
