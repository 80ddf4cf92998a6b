"""How close each sampler comes to a teacher with few network evaluations, on one model; nothing is timed, and real pictures are not needed.

    python -m cfgdiff.benchmarks.samplers [BUNDLE] --steps 4,6,8,10 --n 2048 --frechet alexnet_features.safetensors --out table.md

All draw from the noise of seed 0, picture i of class i mod K, with the model's guidance. The teacher is dpmpp-2m with many evaluations.

    squared error   of the pictures as they are stored: mean over pictures, pixels and channels of (a - b)^2, with uint8 0 .. 255 mapped to
                    -1 .. 1. Rounding to uint8 alone gives about 1e-5. Not of ddpm, which draws other pictures from the same noise.
    Fréchet         distance of Gaussians fitted to features of both sets (as in Heusel et al. 2017, with pooled AlexNet features for
                    Inception's), to the teacher's and, with --data, to all training pictures. The features are the 256 of the last
                    convolution, not the 1,152 of all five, so that the covariance of 2,048 pictures is well conditioned. Sets drawn from
                    the same noise have most of their chance in common; ddpm and the teacher, and any set and real pictures, have not:
                    these distances are larger by as much as two finite sets of the same distribution are apart.

That the teacher stands for 1000 evaluations is measured with --check-teacher on few pictures. The squared distance of their features, in
pairs, bounds the Fréchet distance F of both from above, and sqrt F is a metric:
sqrt F(a, 1000) <= sqrt F(a, teacher) + sqrt F(teacher, 1000).
"""

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from cfgdiff.runtime import Bundle, Request, generate, load_bundle, open_engine, resolve
from cfgdiff.runtime.errors import BadInput, Failure, named
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.plan import FITTED
from cfgdiff.runtime.samplers import SAMPLERS

from . import run
from .alexnet import Vectors, open_vectors, pooled, read_weights
from .measures import Gaussian, frechet, gaussian

TEACHER, STOCHASTIC = "dpmpp-2m", [name for name, sampler in SAMPLERS.items() if sampler.noisy]
COMPARED = (*(name for name in SAMPLERS if name not in STOCHASTIC), FITTED, *STOCHASTIC)
MOST = 1000  # evaluations, and those that the teacher itself is checked against
Cell = tuple[str, int]  # a sampler and its evaluations
Draw = Callable[[str, int, int], np.ndarray]


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared difference of two sets of uint8 pictures of the same shape, mapped to -1 .. 1."""
    return float(np.square((a.astype(np.float64) - b) / 127.5).mean())


def open_features(path: Path, threads: int | None = None) -> Vectors:
    """A function from pictures (N, H, W, 3) uint8 to features (N, 256) float32, with AlexNet's weights at `path`. Raises `Failure`."""
    return open_vectors(pooled(read_weights(path, "--frechet")), threads)


def possible(bundle: Bundle, samplers: list[str], steps: list[int], stochastic: bool) -> list[Cell]:
    """The cells that can be filled: what the plan refuses cannot, nor can noisy ones without `stochastic`. Raises `BadInput` for none."""
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
            f"{STOCHASTIC[0]} needs --frechet, as does {STOCHASTIC[1]}; {FITTED} a model with such steps (cfgdiff fit-steps)"
        )
    return cells


def compare(draw: Draw, cells: list[Cell], teacher: np.ndarray, features: Vectors | None,
            references: dict[str, Gaussian]) -> tuple[dict[Cell, float], dict[str, dict[Cell, float]]]:  # fmt: skip
    """Squared errors to the teacher's pictures (N, H, W, C) uint8; where there are features, the Fréchet distances to each reference."""
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
    """Of the features of the training pictures that `cfgdiff train` reads at `data`. Raises `Failure`."""
    from cfgdiff.trainer.data import load_data

    return gaussian(features(load_data(data, bundle.image_shape[1]).pictures.transpose(0, 2, 3, 1)))


def table(samplers: list[str], steps: list[int], values: dict[Cell, float], form: str) -> str:
    """Markdown: a row for each sampler, a column for each number of evaluations, - where there is no value; `form` as ".2e"."""
    rows = [["sampler", *map(str, steps)], ["---"] * (1 + len(steps))]
    rows += [[name, *(f"{values[name, n]:{form}}" if (name, n) in values else "-" for n in steps)] for name in samplers]
    return "\n".join(f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in rows)


def parse_steps(text: str) -> list[int]:
    """Evaluations from "4,6,8", rising. Raises `BadInput`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= MOST for part in parts):
        raise BadInput(f"--steps: expected numbers from 1 to {MOST} as in 4,6,8, found {text!r}")
    return sorted({int(part) for part in parts})


def parse_samplers(text: str) -> list[str]:
    """Names from "ddim,heun", each once. Raises `BadInput` for an unknown one, naming the nearest."""
    return list(dict.fromkeys(named("--samplers", "sampler", part.strip(), COMPARED) for part in text.split(",")))


def check_flags(bundle: Bundle, steps: list[int], teacher_steps: int, weights: Path | None, data: Path | None, out: Path | None) -> None:
    """Raises `BadInput` or `Failure` for what would otherwise come to light after hours of sampling, or not at all."""
    if teacher_steps <= steps[-1]:
        raise BadInput(f"--teacher-steps: expected more than --steps, at most {steps[-1]}, found {teacher_steps}; give the teacher more")
    if weights is not None and bundle.image_shape[0] != 3:
        raise BadInput(f"--frechet: expected a model of RGB pictures, found {bundle.image_shape[0]} channels; leave it out")
    if data is not None and weights is None:
        raise BadInput("--data: real pictures are compared by their features only; add --frechet with AlexNet's convolutions")
    if out is not None and not out.resolve().parent.is_dir():
        raise Failure(f"--out: {out.resolve().parent} is not a folder; make it first")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--steps", default="4,6,8,10,15,20,50", show_default=True, metavar="N[,N...]", help="Network evaluations a picture.")
@click.option("--samplers", metavar="NAME[,NAME...]", help=f"Default: all of {', '.join(COMPARED)}.")
@click.option("--n", default=64, show_default=True, type=click.IntRange(min=2), help="Pictures of each, all classes in turn.")
@click.option("--teacher-steps", default=200, show_default=True, type=click.IntRange(2, MOST), help=f"Evaluations of {TEACHER}.")
@click.option("--frechet", "weights", type=click.Path(path_type=Path), metavar="FILE",
              help="AlexNet's convolutions as safetensors, for the Fréchet distances.")  # fmt: skip
@click.option("--check-teacher", "check", default=0, type=click.IntRange(min=0), metavar="N",
              help=f"Also say how far the teacher's first N pictures are from those of {MOST} evaluations of ddim.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
              help="Fréchet distances to these real pictures, too, as CIFAR-10 unpacked or whatever cfgdiff train takes.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write what is printed there, too, as Markdown.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the engine's choice.")
def command(bundle: Path | None, steps: str, samplers: str | None, n: int, teacher_steps: int, weights: Path | None, check: int,
            data: Path | None, out: Path | None, threads: int | None) -> None:  # fmt: skip
    """Compare the samplers of a bundle (by default the packaged model) with a teacher of many evaluations, in float32."""
    columns, found = parse_steps(steps), load_bundle(bundle)
    rows = parse_samplers(samplers) if samplers is not None else [name for name in COMPARED if name != FITTED or found.fitted]
    check_flags(found, columns, teacher_steps, weights, data, out)
    features = None if weights is None else open_features(weights, threads)
    cells = possible(found, rows, columns, features is not None)
    references = {"real pictures": real(data, found, features)} if data and features else {}
    total = max(n, check) * teacher_steps + check * MOST + n * sum(count for _, count in cells)
    with closing(open_engine(found, precision="float32", threads=threads)) as engine, click.progressbar(
            length=total, label="sampling", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:  # fmt: skip

        def draw(sampler: str, count: int, pictures: int) -> np.ndarray:
            classes = [i % len(found.class_names) for i in range(pictures)]
            drawn = generate(engine, found, classes, count, sampler=sampler, watch=lambda first, x0: bar.update(len(x0)))
            return np.concatenate([part for _, part in drawn])

        teacher = draw(TEACHER, teacher_steps, max(n, check))
        lines = [f"{n} pictures of {found.name}, w = {found.defaults.guidance:g}, {engine.name} float32. "
                 f"Teacher: {TEACHER}, {teacher_steps} evaluations."]  # fmt: skip
        if check:
            many = draw("ddim", MOST, check)
            told = f"mean squared error {squared_error(many, teacher[:check]):.2e}"
            if features:  # of two sets in pairs, it is never less than their Fréchet distance
                paired = np.square(features(many) - features(teacher[:check]), dtype=np.float64).sum(1).mean()
                told += f", mean squared distance of features {paired:.3f}"
            lines.append(f"Teacher to {MOST} evaluations of ddim, {check} pictures: {told}.")
        if features:
            own = gaussian(features(teacher[:n]))
            lines += [f"Teacher to {name}: Fréchet distance {frechet(own, reference):.3f}." for name, reference in references.items()]
            references["the teacher"] = own
        errors, distances = compare(draw, cells, teacher[:n], features, references)
    lines.append(f"\nMean squared error to the teacher, pixels in -1 .. 1, by evaluations:\n\n{table(rows, columns, errors, '.2e')}")
    for name, values in distances.items():
        lines.append(f"\nFréchet distance to {name}, pooled AlexNet features, by evaluations:\n\n{table(rows, columns, values, '.3f')}")
    click.echo("\n".join(lines))
    if out is not None:
        write_whole(out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    run(command)
