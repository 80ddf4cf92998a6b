"""`cfgdiff-run`: pictures from a bundle. Reads the flags, hands over to cfgdiff.runtime, reports."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import run_command

if TYPE_CHECKING:
    import numpy as np

    from cfgdiff.runtime import Bundle, Engine


class CountingEngine:
    """An engine that counts the network rows it evaluates, B + G a call, and tells `watch` the B of every call."""

    def __init__(self, engine: "Engine") -> None:
        self.engine, self.rows = engine, 0
        self.watch: Callable[[int], object] = lambda b: None
        self.name, self.precision, self.max_batch = engine.name, engine.precision, engine.max_batch

    def predict(self, sample: "np.ndarray", timestep: "np.ndarray", class_label: "np.ndarray", guidance: "np.ndarray") -> "np.ndarray":
        """See `Engine.predict`."""
        answer = self.engine.predict(sample, timestep, class_label, guidance)
        self.rows += len(sample) + len(guidance)
        self.watch(len(sample))
        return answer

    def close(self) -> None:
        """Close the engine inside."""
        self.engine.close()


def _classes(bundle: "Bundle", wanted: tuple[str, ...], n: int) -> list[str]:
    names = [name.strip() for entry in wanted for name in entry.split(",") if name.strip()]
    if not names:
        raise click.UsageError(f"--class NAME is missing; choose from {', '.join(bundle.class_names)}, or all")
    if "all" in names and "all" not in bundle.class_names:
        names = bundle.class_names
    return [names[i % len(names)] for i in range(n)]


@click.command(
    epilog="""\b
Examples:
  cfgdiff-run --class frog --n 64 --out frogs
  cfgdiff-run --class all --n 100 --out grid.png
  cfgdiff-run --class cat,dog --n 10000 --batch 128 --out pets.npz --json
  cfgdiff-run --model exported/mine --class frog --steps 12 --guidance 2"""
)
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Class to draw; repeats, takes a comma list; 'all' goes round all.")
@click.option("--n", default=16, show_default=True, help="Number of pictures.")
@click.option("--steps", type=int, help="Network evaluations a picture. Default: the model's.")
@click.option("--sampler", metavar="NAME", help="ddpm, ddim or dpmpp-2m. Default: the model's.")
@click.option("--guidance", type=float, help="Guidance w; 1 is none, at half the cost. Default: the model's.")
@click.option("--seed", default=0, show_default=True, help="Picture i depends on (seed, i) and its class alone.")
@click.option("--batch", default=64, show_default=True, help="Pictures at a time.")
@click.option("--out", default="samples", show_default=True, type=click.Path(path_type=Path),
              help="A folder (PNGs and grid.png), a .png (grid only) or a .npz (arrays pictures and labels).")  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path), help="A bundle. Default: the packaged CIFAR-10 model.")
@click.option("--engine", default="auto", show_default=True, metavar="NAME", help="auto, tensorrt or cpu.")
@click.option("--precision", default="auto", show_default=True, metavar="NAME", help="A variant of the bundle: float32, float16, int8.")
@click.option("--uncertified", is_flag=True, help="Take a TensorRT engine that cfgdiff verify did not pass, too.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the engine's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--list-classes", is_flag=True, help="Print the model's classes and stop.")
@click.option("-v", "--verbose", is_flag=True, help="Say which engine was taken and why.")
@click.version_option(package_name="cfgdiff")
def command(classes: tuple[str, ...], n: int, out: Path, model: Path | None, engine: str, precision: str, threads: int | None,
            uncertified: bool, as_json: bool, list_classes: bool, verbose: bool, **settings: Any) -> None:  # fmt: skip
    """Generate pictures of a class."""
    started = time.perf_counter()
    from cfgdiff.runtime import load_bundle, open_engine

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    bundle = load_bundle(model)
    if list_classes:
        click.echo("\n".join(bundle.class_names))
        return
    if n < 1:
        raise click.UsageError(f"--n: expected 1 or more, found {n}")
    counting = CountingEngine(open_engine(bundle, engine, precision, threads, uncertified))
    loaded = time.perf_counter()
    names = _classes(bundle, classes, n)
    steps = bundle.defaults.steps if settings["steps"] is None else settings["steps"]
    first_done = _generate(counting, bundle, names, out, settings, n * steps)
    done = time.perf_counter()
    report = {
        "n": n, "steps": steps, "rows": counting.rows, "engine": counting.name,
        "precision": counting.precision, "sampler": settings["sampler"] or bundle.defaults.sampler,
        "guidance": bundle.defaults.guidance if settings["guidance"] is None else settings["guidance"], "seed": settings["seed"],
        "seconds": {"load": round(loaded - started, 4), "first": round(first_done - started, 4), "total": round(done - started, 4)},
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"{n} pictures in {done - started:.1f} s ({counting.name}, {counting.precision}): {out}", err=True)


def _generate(engine: CountingEngine, bundle: "Bundle", names: list[str], out: Path, settings: dict[str, Any], evaluations: int) -> float:
    from cfgdiff.runtime import generate
    from cfgdiff.runtime.generate import class_labels
    from cfgdiff.runtime.images import output

    batches = generate(engine, bundle, names, **settings)
    first_done = 0.0
    with output(out, len(names), class_labels(bundle, names)) as sink, _progress(evaluations) as bar:
        engine.watch = bar.update
        for first, pictures in batches:
            first_done = first_done or time.perf_counter()
            sink.add(first, pictures)
    engine.close()
    return first_done


@contextmanager
def _progress(evaluations: int) -> Iterator[Any]:
    """A progress bar over pictures times steps on standard error, on a terminal only."""
    with click.progressbar(length=evaluations, label="sampling", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield bar


main = run_command(command)
