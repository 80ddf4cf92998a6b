"""The pictures and plots of a report: PNGs of pictures and SVGs of numbers, as text to embed in a page."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfgdiff.runtime import Blend, Bundle, Engine, generate
from cfgdiff.runtime.images import encoded, grid

from .evaluate import Copies
from .neighbours import Neighbours

BLUE, ORANGE = "#2563a8", "#c2571a"


def png(pictures: np.ndarray, columns: int, enlarged: int = 2) -> str:
    """(N, H, W, C) uint8 as a grid, each pixel `enlarged` times: a data URI."""
    sheet = grid(pictures.repeat(enlarged, axis=1).repeat(enlarged, axis=2), columns=columns)
    return "data:image/png;base64," + base64.b64encode(encoded(sheet)).decode()


def interpolations(engine: Engine, bundle: Bundle, classes: Sequence[str], frames: int = 8) -> np.ndarray:
    """A row a class: pictures between two latents (the paper's figure), (len(classes) frames, H, W, C) uint8."""
    names = [name for name in classes for _ in range(frames)]
    shares = np.tile(np.linspace(0, 1, frames), len(classes)).tolist()
    numbers = [i for i in range(len(classes)) for _ in range(frames)]
    drawn = generate(engine, bundle, names, seed=1, indices=numbers, blend=Blend(2, names, shares))
    return np.concatenate([pictures for _, pictures in drawn])


def neighbour_rows(copies: Copies, training: np.ndarray, count: int = 10) -> list[dict[str, Any]]:
    """The samples that are nearest to a training picture, nearest first: each with its neighbours (as mirrored as they
    match)."""
    neighbours, rows = copies.samples, []
    for i in np.argsort(neighbours.distances[:, 0])[:count]:
        matches = zip(neighbours.indices[i], neighbours.mirrored[i], strict=True)
        near = [training[j][:, ::-1] if mirrored else training[j] for j, mirrored in matches]
        rows.append({
            "picture": png(np.stack([copies.pictures[i], *near]), columns=1 + len(near)), "number": int(i),
            "distances": [f"{d:.3f}" for d in neighbours.distances[i]], "copied": bool(neighbours.copied[i]),
        })  # fmt: skip
    return rows


def histogram(samples: Neighbours, held_out: Neighbours | None) -> str:
    """Distances of the nearest training pictures: an SVG."""
    figure, axes = _plot()
    both = [("samples", samples, BLUE)] + ([("held-out pictures", held_out, ORANGE)] if held_out else [])
    edges = np.linspace(0, max(float(neighbours.distances[:, 0].max()) for _, neighbours, _ in both), 25).tolist()
    for label, neighbours, colour in both:
        nearest = neighbours.distances[:, 0]
        axes.hist(nearest, bins=edges, alpha=0.6, color=colour, label=f"{label}, mean {nearest.mean():.3f}")
    axes.set(xlabel="LPIPS to the nearest training picture", ylabel="pictures")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _svg(figure)


def sweep_plot(rows: list[dict[str, Any]], varied: str) -> str:
    """Fréchet distance and class accuracy against the varied setting, a line for each interval: an SVG."""
    figure, axes = _plot()
    right, chosen = axes.twinx(), [row for row in rows if row["varied"] == varied]
    for i, interval in enumerate(dict.fromkeys(str(row["interval"]) for row in chosen)):
        line = [row for row in chosen if str(row["interval"]) == interval]
        style, x = ("-", "--", ":", "-.")[i % 4], [row[varied] for row in line]
        interval = line[0]["interval"]
        where = "" if interval is None else f" inside {interval[0]:g} .. {interval[1]:g}"
        axes.plot(x, [row["frechet"] for row in line], style, marker="o", color=BLUE, label=f"Fréchet distance{where}")
        if line[0]["accuracy"] is not None:
            right.plot(
                x,
                [100 * row["accuracy"] for row in line],
                style,
                marker="s",
                color=ORANGE,
                label=f"class accuracy{where}",
            )
    axes.set_xlabel("guidance w" if varied == "guidance" else "evaluations")
    axes.set_ylabel("Fréchet distance", color=BLUE)
    right.set_ylabel("class accuracy, %", color=ORANGE)
    axes.set_ylim(0, 1.1 * max(row["frechet"] for row in chosen))
    right.set_ylim(0, 100)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return _svg(figure)


def _plot() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cfgdiff", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration and the reference to a DTD
