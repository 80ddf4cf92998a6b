"""How close each sampler comes to a teacher with few network evaluations, on one model; nothing is timed, and real
pictures are not needed.

All draw from the noise of seed 0, picture i of class i mod K, with the model's guidance. The teacher is dpmpp-2m with
many evaluations.

    squared error   of the pictures as they are stored: mean over pictures, pixels and channels of (a - b)^2, with uint8
                    0 .. 255 mapped to -1 .. 1. Rounding to uint8 alone gives about 1e-5. Not of ddpm, which draws other
                    pictures from the same noise.
    Fréchet         distance of Gaussians fitted to features of both sets (as in Heusel et al. 2017, with pooled AlexNet
                    features for Inception's), to the teacher's and, with --data, to all training pictures. The features
                    are the 256 of the last convolution, not the 1,152 of all five, so that the covariance of 2,048
                    pictures is well conditioned. Sets drawn from the same noise share most of their randomness. Those
                    of ddpm and the teacher, or of any set and real pictures, do not: their distance is larger by that
                    of two finite sets of the same distribution.

That the teacher stands for 1000 evaluations is measured with --check-teacher on few pictures. The squared distance of
their features, in pairs, bounds the Fréchet distance F of both from above, and sqrt F is a metric: sqrt F(a, 1000) <=
sqrt F(a, teacher) + sqrt F(teacher, 1000).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfgdiff.export.fit import squared_error
from cfgdiff.export.markdown import table
from cfgdiff.runtime import Bundle, Request, generate, open_engine, resolve
from cfgdiff.runtime.errors import BadInput, Failure, named
from cfgdiff.runtime.plan import FITTED
from cfgdiff.runtime.samplers import SAMPLERS

from .alexnet import Vectors, open_vectors, pooled, read_weights
from .blocks import Watch
from .measures import Gaussian, frechet, gaussian

TEACHER, STOCHASTIC = "dpmpp-2m", [name for name, sampler in SAMPLERS.items() if sampler.noisy]
COMPARED = (*(name for name in SAMPLERS if name not in STOCHASTIC), FITTED, *STOCHASTIC)
MOST = 1000  # evaluations, and those that the teacher itself is checked against
Cell = tuple[str, int]  # a sampler and its evaluations
Draw = Callable[[str, int, int], np.ndarray]


def open_features(path: Path, threads: int | None = None) -> Vectors:
    """A function from pictures (N, H, W, 3) uint8 to features (N, 256) float32, with AlexNet's weights at `path`.
    Raises `Failure`."""
    return open_vectors(pooled(read_weights(path, "--frechet")), threads)


def possible(bundle: Bundle, samplers: list[str], steps: list[int], stochastic: bool) -> list[Cell]:
    """The cells that the plan accepts; noisy ones only with `stochastic`. Raises `BadInput` where none is left."""
    cells = []
    for cell in ((name, n) for name in samplers for n in steps if stochastic or name not in STOCHASTIC):
        try:
            resolve(bundle, Request([0], sampler=cell[0], steps=cell[1]))
        except BadInput:
            continue
        cells.append(cell)
    if not cells:
        raise BadInput(
            f"--samplers: none of {', '.join(samplers)} can be compared at --steps of {', '.join(map(str, steps))}; "
            f"{STOCHASTIC[0]} needs --frechet, as does {STOCHASTIC[1]}; {FITTED} needs such steps (cfgdiff fit-steps)"
        )
    return cells


def compare(draw: Draw, cells: list[Cell], teacher: np.ndarray, features: Vectors | None,
            references: dict[str, Gaussian]) -> tuple[dict[Cell, float], dict[str, dict[Cell, float]]]:  # fmt: skip
    """Squared errors to the teacher's pictures (N, H, W, C) uint8; where there are features, the Fréchet distances to
    each reference."""
    errors, distances = dict[Cell, float](), {name: dict[Cell, float]() for name in references}
    for cell in cells:
        pictures = draw(*cell, len(teacher))
        if cell[0] not in STOCHASTIC:
            errors[cell] = squared_error(pictures, teacher)
        if features:
            own = gaussian(features(pictures))
            for name, reference in references.items():
                distances[name][cell] = frechet(own, reference)
    return errors, distances


def real(data: Path, bundle: Bundle, features: Vectors) -> Gaussian:
    """The Gaussian of the features of the training pictures at `data`. Raises `Failure`."""
    from cfgdiff.trainer.data import load_data

    return gaussian(features(load_data(data, bundle.image_shape[1]).in_memory().pictures.transpose(0, 2, 3, 1)))


def cells_table(samplers: list[str], steps: list[int], values: dict[Cell, float], form: str) -> str:
    """Markdown: a row for each sampler, a column for each number of evaluations, - where there is no value; `form` as
    ".2e"."""
    return table(["sampler", *steps], [
        [name, *(f"{values[name, n]:{form}}" if (name, n) in values else "-" for n in steps)] for name in samplers
    ])  # fmt: skip


def parse_samplers(text: str | None, bundle: Bundle) -> list[str]:
    """Names from "ddim,heun", each once; None: all that the bundle has. Raises `BadInput` for an unknown one, naming
    the nearest."""
    if text is None:
        return [name for name in COMPARED if name != FITTED or bundle.fitted]
    return list(dict.fromkeys(named("--samplers", "sampler", part.strip(), COMPARED) for part in text.split(",")))


@dataclass(frozen=True)
class Setting:
    """The flags of `cfgdiff bench samplers`: `n` pictures of each cell; `checked` of them say how near the teacher is
    to `MOST`."""

    samplers: list[str]
    steps: list[int]
    n: int = 64
    teacher_steps: int = 200
    checked: int = 0
    weights: Path | None = None
    data: Path | None = None
    out: Path | None = None
    threads: int | None = None

    def check(self, bundle: Bundle) -> None:
        """Raises `BadInput` or `Failure` for mistakes that would otherwise show after hours of sampling, or never."""
        if self.teacher_steps <= max(self.steps):
            most = max(self.steps)
            raise BadInput(f"--teacher-steps: expected more than --steps, at most {most}, found {self.teacher_steps}")
        if self.weights is not None and bundle.image_shape[0] != 3:
            raise BadInput(
                f"--frechet: expected a model of RGB pictures, found {bundle.image_shape[0]} channels; leave it out"
            )
        if self.data is not None and self.weights is None:
            raise BadInput(
                "--data: real pictures are compared by their features only; add --frechet with AlexNet's convolutions"
            )
        if self.out is not None and not self.out.resolve().parent.is_dir():
            raise Failure(f"--out: {self.out.resolve().parent} is not a folder; make it first")


def samplers_report(bundle: Bundle, setting: Setting, progress: Callable[[int], AbstractContextManager[Watch]]) -> str:
    """The whole comparison as Markdown. `progress` opens a bar of that many evaluated pictures. Raises `BadInput` or
    `Failure`."""
    setting.check(bundle)
    features = None if setting.weights is None else open_features(setting.weights, setting.threads)
    cells = possible(bundle, setting.samplers, setting.steps, features is not None)
    references = {"real pictures": real(setting.data, bundle, features)} if setting.data and features else {}
    n, most = setting.n, max(setting.n, setting.checked)
    total = most * setting.teacher_steps + setting.checked * MOST + n * sum(count for _, count in cells)
    with closing(open_engine(bundle, precision="float32", threads=setting.threads)) as engine, progress(total) as watch:

        def draw(sampler: str, count: int, pictures: int) -> np.ndarray:
            classes = [i % len(bundle.class_names) for i in range(pictures)]
            drawn = generate(
                engine, bundle, classes, steps=count, sampler=sampler, watch=lambda first, x0: watch(len(x0))
            )
            return np.concatenate([part for _, part in drawn])

        teacher = draw(TEACHER, setting.teacher_steps, most)
        lines = [f"{n} pictures of {bundle.name}, w = {bundle.defaults.guidance:g}, {engine.name} float32. "
                 f"Teacher: {TEACHER}, {setting.teacher_steps} evaluations."]  # fmt: skip
        if setting.checked:
            lines.append(_checked(draw("ddim", MOST, setting.checked), teacher[: setting.checked], features))
        if features:
            own = gaussian(features(teacher[:n]))
            lines += [
                f"Teacher to {name}: Fréchet distance {frechet(own, reference):.3f}."
                for name, reference in references.items()
            ]
            references["the teacher"] = own
        errors, distances = compare(draw, cells, teacher[:n], features, references)
    shown = {"Mean squared error to the teacher, pixels in -1 .. 1": (errors, ".2e")}
    shown |= {
        f"Fréchet distance to {name}, pooled AlexNet features": (values, ".3f") for name, values in distances.items()
    }
    for title, (values, form) in shown.items():
        lines.append(f"\n{title}, by evaluations:\n\n{cells_table(setting.samplers, setting.steps, values, form)}")
    return "\n".join(lines)


def _checked(many: np.ndarray, teacher: np.ndarray, features: Vectors | None) -> str:
    """How near the teacher is to `MOST` evaluations. Of two sets in pairs, the distance of features is at least the
    Fréchet distance."""
    error = squared_error(many, teacher)
    line = f"Teacher to {MOST} evaluations of ddim, {len(many)} pictures: mean squared error {error:.2e}"
    if features:
        paired = np.square(features(many) - features(teacher), dtype=np.float64).sum(1).mean()
        line += f", mean squared distance of features {paired:.3f}"
    return line + "."
