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


PLANNED = ("sampler", "steps", "guidance", "spacing", "timesteps", "eta")


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


def _timesteps(context: click.Context, option: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--timesteps: expected T[,T...] as in 999,750.5,20, found '{text}'") from None


@click.command(
    epilog="""\b
Examples:
  cfgdiff-run --class frog --n 64 --out frogs
  cfgdiff-run --class all --n 100 --out grid.png
  cfgdiff-run --class cat,dog --n 10000 --batch 128 --out pets.npz --json
  cfgdiff-run --class all --n 100000 --out many --resume
  cfgdiff-run --remake frogs/0003.png --out again.png
  cfgdiff-run --model exported/mine --class frog --steps 12 --guidance 2"""
)
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Class to draw; repeats, takes a comma list; 'all' goes round all.")
@click.option("--n", default=16, show_default=True, help="Number of pictures.")
@click.option("--steps", type=int, help="Network evaluations a picture. Default: the model's.")
@click.option("--sampler", metavar="NAME", help="ddpm, ddim, dpmpp-2m, dpmpp-3m, unipc, ipndm, heun or fitted. Default: the model's.")
@click.option("--spacing", metavar="NAME", help="Of the evaluations: uniform, quadratic, log-snr or karras. Default: the sampler's.")
@click.option("--timesteps", metavar="T[,T...]", callback=_timesteps,
              help="The t to evaluate at, falling from the model's T or less; with heun of every second evaluation.")  # fmt: skip
@click.option("--eta", default=0.0, show_default=True, help="Share of ddpm's noise in ddim, 0 .. 1.")
@click.option("--guidance", type=float, help="Guidance w; 1 is none, at half the cost. Default: the model's.")
@click.option("--seed", default=0, show_default=True, help="Picture i depends on (seed, i) and its class alone.")
@click.option("--batch", default=64, show_default=True, help="Pictures at a time.")
@click.option("--out", default="samples", show_default=True, type=click.Path(path_type=Path),
              help="A folder (pictures, grid.png), or a .png (grid), .npz (arrays pictures, labels) or .tar (WebDataset).")  # fmt: skip
@click.option("--format", "kind", default="png", show_default=True, type=click.Choice(["png", "webp"]),
              help="Of pictures in a folder or .tar.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a folder of an interrupted run: draw only the pictures that are missing.")
@click.option("--remake", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw this picture again from the note inside it, and compare.")  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path), help="A bundle. Default: the packaged CIFAR-10 model.")
@click.option("--engine", default="auto", show_default=True, metavar="NAME", help="auto, tensorrt, cuda, cpu, openvino.")
@click.option("--precision", default="auto", show_default=True, metavar="NAME",
              help="A variant of the bundle: float32, float16, int8; or bfloat16, on openvino.")  # fmt: skip
@click.option("--uncertified", is_flag=True, help="Take a TensorRT engine that cfgdiff verify did not pass, too.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the engine's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option("--list-classes", is_flag=True, help="Print the model's classes and stop.")
@click.option("-v", "--verbose", is_flag=True, help="Say which engine was taken and why.")
@click.version_option(package_name="cfgdiff")
def command(classes: tuple[str, ...], n: int, out: Path, kind: str, resume: bool, remake: Path | None, model: Path | None, engine: str,
            precision: str, threads: int | None, uncertified: bool, as_json: bool, list_classes: bool, verbose: bool,
            **settings: Any) -> None:  # fmt: skip
    """Generate pictures of a class. Each carries a note of how it was made, from which --remake makes it again."""
    started = time.perf_counter()
    from cfgdiff.runtime import load_bundle, open_engine
    from cfgdiff.runtime.plan import make_plan

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    bundle = load_bundle(model)
    if list_classes:
        click.echo("\n".join(bundle.class_names))
        return
    if remake is not None:
        _remake(
            remake,
            bundle,
            out,
            lambda found: open_engine(bundle, engine, found if precision == "auto" else precision, threads, uncertified),
        )
        return
    if n < 1:
        raise click.UsageError(f"--n: expected 1 or more, found {n}")
    names = _classes(bundle, classes, n)
    plan = make_plan(bundle, **{key: settings[key] for key in PLANNED})
    counting = CountingEngine(open_engine(bundle, engine, precision, threads, uncertified))
    loaded = time.perf_counter()
    first_done, drawn = _generate(counting, bundle, names, out, kind, resume, settings, plan.steps)
    done = time.perf_counter()
    report = {
        "n": n, "steps": plan.steps, "rows": counting.rows, "engine": counting.name,
        "precision": counting.precision, "sampler": plan.sampler, "spacing": plan.spacing, "guidance": plan.guidance,
        "seed": settings["seed"],
        "seconds": {"load": round(loaded - started, 4), "first": round(first_done - started, 4), "total": round(done - started, 4)},
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(report))
    else:
        there = f", {n - drawn} were there" if drawn < n else ""
        click.echo(f"{drawn} pictures in {done - started:.1f} s ({counting.name}, {counting.precision}){there}: {out}", err=True)


def _generate(engine: CountingEngine, bundle: "Bundle", names: list[str], out: Path, kind: str, resume: bool, settings: dict[str, Any],
              steps: int) -> tuple[float, int]:  # fmt: skip
    """Draw all pictures, or those that are missing; when the first batch was there, and how many were drawn."""
    import numpy as np

    from cfgdiff.runtime import generate
    from cfgdiff.runtime.generate import class_labels
    from cfgdiff.runtime.outputs import Folder, output

    labels, note, first_done = class_labels(bundle, names), _notes(engine, bundle, names, settings), time.perf_counter()
    with output(out, labels, note, kind) as sink:
        missing = np.arange(len(names))
        if resume:
            if not isinstance(sink, Folder):
                raise click.UsageError(f"--resume: only a folder can be gone on with, found --out {out}; start again without it")
            missing = sink.missing()
        if len(missing):
            batches = generate(engine, bundle, [names[i] for i in missing], **settings, indices=missing.tolist())
            with _progress(len(missing) * steps) as bar:
                engine.watch = bar.update
                for first, pictures in batches:
                    first_done = time.perf_counter() if first == 0 else first_done
                    sink.add(missing[first : first + len(pictures)], pictures)
    engine.close()
    return first_done, len(missing)


def _notes(engine: CountingEngine, bundle: "Bundle", names: list[str], settings: dict[str, Any]) -> "Callable[[int], dict[str, Any]]":
    """What picture i says of itself: all that `generate` needs to draw it again, the model and the engine."""
    from cfgdiff.runtime.plan import make_plan

    plan = make_plan(bundle, **{key: settings[key] for key in PLANNED})
    told = {key: settings[key] for key in ("spacing", "timesteps", "eta") if settings[key]}
    common = {
        "seed": settings["seed"], "steps": plan.steps, "guidance": plan.guidance, "sampler": plan.sampler, **told, "model": bundle.name,
        "model_sha256": _digest(bundle, engine.precision), "engine": engine.name, "precision": engine.precision,
    }  # fmt: skip
    return lambda i: {"class": names[i], "index": i, **common}


def _digest(bundle: "Bundle", precision: str) -> str:
    from cfgdiff.runtime.sidecar import graph_digest

    return graph_digest(bundle.variants.get(precision) or bundle.variant("float32"))  # bfloat16 is float32's graph


def _remake(file: Path, bundle: "Bundle", out: Path, opened: "Callable[[str], Engine]") -> None:
    """Draw the picture of `file` again from its note and compare the two."""
    import numpy as np
    from PIL import Image

    from cfgdiff.runtime import generate
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.images import encoded, read_note, write_whole

    note = read_note(file)
    try:
        settings = {key: note[key] for key in ("seed", "steps", "guidance", "sampler")}
        settings |= {key: note[key] for key in ("spacing", "timesteps", "eta") if key in note}
        name, index, digest = note["class"], note["index"], note["model_sha256"]
    except KeyError as error:
        raise Failure(f"{file}: its note lacks {error}; expected a picture of a folder or .tar as written by cfgdiff-run") from None
    found = _digest(bundle, note["precision"])
    if found != digest:
        raise Failure(
            f"{file}: was made with model {note.get('model')} ({digest[:12]}…), found {bundle.name} ({found[:12]}…); give its --model"
        )
    engine = opened(note["precision"])
    ((_, pictures),) = generate(engine, bundle, [name], **settings, indices=[index])
    with Image.open(file) as image:
        before = np.asarray(image).reshape(pictures[0].shape).astype(int)
    apart = int(np.abs(pictures[0] - before).max())
    target = out if out.suffix else out / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    note |= {"engine": engine.name, "precision": engine.precision}
    write_whole(target, encoded(pictures[0], target.suffix.lstrip("."), note))
    engine.close()
    same = "the same pixels" if not apart else f"differs by up to {apart} grey levels"
    click.echo(f"{target}: {same} ({engine.name}, {engine.precision}; {file.name} was drawn by {read_note(file)['engine']})", err=True)


@contextmanager
def _progress(evaluations: int) -> Iterator[Any]:
    """A progress bar over pictures times steps on standard error, on a terminal only."""
    with click.progressbar(length=evaluations, label="sampling", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield bar


main = run_command(command)
