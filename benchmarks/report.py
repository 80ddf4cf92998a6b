"""One page that says and shows all that was found, with nothing outside it: no script, no font, no request."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.files import write_whole

from . import figures
from .evaluate import Found, Real, best
from .features import Classifier
from .machine import describe
from .measures import Quality

COLUMNS, CLASSES = 12, 20


def write_report(folder: Path, found: Found, bundle: Bundle, interpolated: np.ndarray, classifier: Classifier | None,
                 real: Real | None, best_of: int) -> Path:  # fmt: skip
    """report.html and report.json into `folder`, whole. Gives the page's path. Raises `Failure` where it cannot be written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    summary, names = found.summary(), bundle.class_names[:CLASSES]
    each = [np.flatnonzero(found.samples.labels == k) for k in range(len(names))]
    picked = list(best(found.samples, best_of)) if classifier and best_of else list[np.ndarray]()
    counts = np.array(summary["confusion"], float) if "confusion" in summary else np.zeros((0, 0))
    context = summary | {
        "name": bundle.name, "repeats": len(found.qualities) or 1, "class_names": bundle.class_names, "machine": describe(),
        "grids": _rows(names, found.samples.pictures, [rows[:COLUMNS] for rows in each]),
        "best": _rows(names, found.samples.pictures, picked), "n_each": min(map(len, each)),
        "interpolations": figures.png(interpolated, columns=len(interpolated) // min(len(names), 5)),
        "quality": _quality(summary["quality"], summary["called"], found.real) if found.qualities else [],
        "n_training": len(real.pictures) if real else 0, "n_held_out": min(len(real.held_out), found.n) if real else 0,
        "copies": summary.get("nearest"), "classifier_accuracy": classifier.accuracy if classifier else None,
        "histogram": figures.histogram(found.copies.samples, found.copies.held_out) if found.copies else "",
        "neighbours": figures.neighbour_rows(found.copies, real.pictures) if found.copies and real else [],
        "confusion": (100 * counts / counts.sum(1, keepdims=True).clip(1)).tolist(), "accuracy": summary.get("class accuracy"),
        "sweep": sweep_cells(found.sweep), "sweep_n": found.sweep[0]["n"] if found.sweep else 0,
        "guidance_plot": figures.sweep_plot(found.sweep, "guidance") if found.sweep else "",
        "evaluations_plot": figures.sweep_plot(found.sweep, "evaluations") if found.sweep else "",
    }  # fmt: skip
    write_whole(folder / "report.json", (json.dumps(summary | {"machine": describe()}, indent=1) + "\n").encode())
    write_whole(folder / "report.html", page.render(context).encode())
    return folder / "report.html"


def sweep_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of a sweep as text: sampler, guidance, interval, evaluations, Fréchet distance, class accuracy."""
    return [[row["sampler"], f"{row['guidance']:g}", _interval(row["interval"]), str(row["evaluations"]), f"{row['frechet']:.2f}",
             "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"] for row in rows]  # fmt: skip


def _interval(interval: tuple[float, float] | None) -> str:
    return "all" if interval is None else f"{interval[0]:g} .. {interval[1]:g}"


def _rows(names: list[str], pictures: np.ndarray, rows: list[np.ndarray]) -> list[tuple[str, str]]:
    return [(name, figures.png(pictures[row], columns=len(row))) for name, row in zip(names, rows, strict=False) if len(row)]


def _quality(measured: dict[str, dict[str, float]], names: dict[str, str], real: Quality | None) -> list[tuple[str, str, str]]:
    rows = []
    for key, name in names.items():
        one = measured[key]
        spread = f" ± {one['deviation']:.4f}" if one["of"] > 1 else ""
        if f"{key}_std" in measured:
            spread += f" (deviation within: {measured[f'{key}_std']['mean']:.4f})"
        theirs = getattr(real, key) if real else None
        rows.append((name, f"{one['mean']:.4f}{spread}", "-" if theirs is None else f"{theirs:.4f}"))
    return rows
