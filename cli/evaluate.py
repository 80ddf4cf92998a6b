"""`cfgdiff eval`: how good is this model, and does it copy its training data?"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .evaluate_shards import bundle_of, open_source, report_statistics, samples_of, write_statistics
from .flags import INTERVAL, log_to_stderr, progress_bar
from .stages import asked_stages, stage_options
from .train import PATH

if TYPE_CHECKING:
    from cfgdiff.benchmarks.blocks import Samples
    from cfgdiff.benchmarks.features import Classifier, Extractor
    from cfgdiff.benchmarks.subject import Subject
    from cfgdiff.runtime import Bundle, Engine
    from cfgdiff.trainer.data import PictureSet

    from .evaluate_shards import Source

QUICK, QUICK_SWEEP, QUICK_CAS, SWEEP, FULL = 2048, 512, 5000, 2048, 50_000
KINDS = ("auto", "inception", "alexnet", "classifier")
POSITIVE = click.IntRange(min=1)


def _shard(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, _, m = text.partition("/")
    if not (k.isdecimal() and m.isdecimal() and 1 <= int(k) <= int(m)):
        raise click.UsageError(f"--shard: expected K/M with 1 <= K <= M, as in 2/4, found '{text}'")
    return int(k), int(m)


@click.command(
    "eval",
    epilog="""\b
Examples:
  cfgdiff eval --quick --data DATA
  cfgdiff eval exported/small --data DATA --out quality --store
  cfgdiff eval --data DATA --features alexnet --alexnet alexnet.safetensors
  cfgdiff eval cifar10-turbo --quick --data DATA --teacher cifar10-small
  cfgdiff eval --data DATA --out quality --shard 2/4
  cfgdiff eval --from DEST --data DATA --n 50000 --out quality
  cfgdiff eval --from DEST --n 50000 --shard 2/4 --stats part-2.npz
  cfgdiff eval --from 'part-*.npz' --data DATA --out quality

Without --data, or where no weights for features are available, nothing is compared: the page shows samples,
interpolations and class accuracy only.""",
)
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--data", type=PATH, metavar="DIR", help="Real pictures, as CIFAR-10 unpacked or whatever cfgdiff train takes."
)
@click.option("--n", type=click.IntRange(min=32), help=f"Samples. Default: {FULL}, or {QUICK} with --quick.")
@click.option(
    "--quick",
    is_flag=True,
    help=f"{QUICK} samples, and {QUICK_SWEEP} for each setting of the sweep: minutes on two cores.",
)
@click.option(
    "--repeats",
    default=1,
    show_default=True,
    type=POSITIVE,
    help="Measure so many sets of n samples, for a mean and a deviation.",
)
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Folder for samples and the report; samples that are there are kept. Default: eval-NAME.",
)
@click.option(
    "--features", default="auto", show_default=True, type=click.Choice(KINDS), help="What distances are measured in."
)
@click.option("--alexnet", type=PATH, metavar="FILE", envvar="CFGDIFF_ALEXNET", show_envvar=True,
              help="AlexNet's convolutions as safetensors, torchvision's names. Default: fetched once.")  # fmt: skip
@click.option("--classifier", type=PATH, metavar="FILE",
              help="From cfgdiff classifier train. Default for CIFAR-10: the packaged one.")  # fmt: skip
@click.option(
    "--sweep/--no-sweep", default=True, show_default=True, help="Also measure other guidances and evaluations."
)
@click.option("--cas", is_flag=True,
              help="Also train a classifier on samples and test it on real pictures: the classification accuracy "
              f"score, on {FULL} samples, {QUICK_CAS} with --quick, or --n. It takes minutes.")  # fmt: skip
@click.option(
    "--best",
    default=8,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="K",
    help="Show the K best samples of each class.",
)
@click.option(
    "--shard",
    callback=_shard,
    metavar="K/M",
    help="Draw one of M shares of the samples and stop; a last call without it makes the report.",
)
@click.option("--guidance", type=float, help="Guidance w. Default: the model's.")
@click.option(
    "--guidance-interval", "interval", metavar="LO,HI", type=INTERVAL, help="As for cfgdiff-run. Default: the model's."
)
@click.option("--steps", type=POSITIVE, help="Network evaluations a picture. Default: the model's.")
@click.option("--sampler", help="As for cfgdiff-run. Default: the model's.")
@stage_options
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Picture i depends on the seed, i and its class alone.",
)
@click.option("--engine", default="auto", show_default=True, help="As for cfgdiff-run.")
@click.option("--threads", type=POSITIVE, help="CPU threads. Default: the engine's choice.")
@click.option(
    "--store",
    is_flag=True,
    help="Put the figures and what the sweep chose as defaults into the bundle and its model card.",
)
@click.option("--teacher", type=PATH, metavar="BUNDLE",
              help="The model that this one learned from: the sweep also measures how far its pictures are from the "
              "teacher's, from the same noise. Default: the model itself at its most evaluations.")  # fmt: skip
@click.option("--from", "source", type=PATH, metavar="DEST",
              help="Measure what is there instead of drawing: finished shards of cfgdiff-run --shard-size, in a folder "
              "or at a URL, or what --stats wrote, as 'part-*.npz'.")  # fmt: skip
@click.option("--stats", type=PATH, metavar="FILE.npz",
              help="With --from DEST: write what the Fréchet distance and class accuracy need of the shards, and no "
              "report; with --shard K/M, of every M-th shard. Shards that the file has are skipped.")  # fmt: skip
def evaluate(bundle: Path | None, data: Path | None, n: int | None, quick: bool, repeats: int, out: Path | None,
             features: str, alexnet: Path | None, classifier: Path | None, sweep: bool, cas: bool, best: int,
             shard: tuple[int, int] | None, engine: str, threads: int | None, store: bool, source: Path | None,
             stats: Path | None, teacher: Path | None, **settings: Any) -> None:  # fmt: skip
    """Measure the quality of a bundle's pictures (by default cifar10-small), and whether they copy training pictures.

    One page shows it all: Fréchet and kernel distance, precision and recall, class accuracy, the nearest training
    pictures in LPIPS, guidance and evaluations swept, samples, interpolations. In Inception's features the distances
    are FID and KID; where its weights cannot be fetched, AlexNet's or the classifier's take their place, and the report
    says so.
    """
    from cfgdiff.benchmarks.features import choose_judges
    from cfgdiff.benchmarks.subject import Subject
    from cfgdiff.runtime import Request, load_bundle, open_engine

    log_to_stderr()
    given = open_source(source, stats) if source or stats else None
    model = bundle_of(given, bundle) if given else load_bundle(bundle)
    settings["stages"] = asked_stages(len(model.stages), settings)
    if store:
        _check_store(model.path, shard)
    if cas and data is None:
        raise click.UsageError("--cas: tests a classifier on real pictures, found no --data")
    pictures = _real(data, model, cas)
    judge, extractor, weights, notes = choose_judges(model, features, alexnet, classifier, threads)
    seconds, folder, request = dict[str, float](), out or Path(f"eval-{model.name}"), Request([], **settings)
    samples, trained_on = n or (QUICK if quick else FULL), cas * (n or (QUICK_CAS if quick else FULL))
    with ExitStack() as stack:
        opened, stage = None, partial(_stage, seconds)
        if given is None:
            opened = stack.enter_context(closing(open_engine(model, engine, threads=threads)))
        needed = None if stats or (given and given.files) else max(samples * repeats, trained_on)
        sampling = _sampling(folder, model, opened, given, needed, extractor, judge)
        subject = Subject(sampling, request, samples, stage, repeats, pictures, trained_on, threads)
        if teacher is not None and opened:
            subject.teacher = _teacher(teacher, subject, folder, engine, stack)
        if given and stats:
            return write_statistics(given, stats, n, shard or (1, 1), sampling, stage)
        if shard is not None:
            return _draw_shard(subject, shard)
        for note in notes:
            click.echo(note, err=True)
        swept = (QUICK_SWEEP if quick else SWEEP) if sweep and opened else 0
        if given and given.files:
            page, summary = report_statistics(folder, given, subject, n, notes, seconds)
        else:
            page, summary = _report(folder, subject, weights, swept, notes, seconds, opened, best)
        if store and opened:
            _store(model, summary, opened)
    click.echo(f"{page}: {_headline(summary)}")


def _sampling(folder: Path, model: "Bundle", engine: "Engine | None", given: "Source | None", needed: int | None,
              extractor: "Extractor", judge: "Classifier | None") -> "Samples":  # fmt: skip
    """The samples: drawn by an engine, or those that are given, of which so many are needed."""
    from cfgdiff.benchmarks.blocks import Sampling

    if engine is not None:
        return Sampling(folder / "samples", model, engine, extractor, judge)
    assert given is not None
    return samples_of(given, folder / "samples", model, needed, extractor, judge)


def _teacher(path: Path, subject: "Subject", folder: Path, engine: str, stack: ExitStack) -> "Subject":
    """The samples of a teacher at its most evaluations, with the guidance of the model that learned from it."""
    from cfgdiff.benchmarks.blocks import Sampling
    from cfgdiff.benchmarks.evaluate import STEPS
    from cfgdiff.benchmarks.subject import Subject
    from cfgdiff.runtime import Request, open_engine
    from cfgdiff.runtime.errors import Failure

    from .opening import load_single

    model, student, judge = load_single(path, "it is to teach one network"), subject.sampling.bundle, subject.sampling
    if model.image_shape != student.picture_shape or model.class_names != student.class_names:
        raise Failure(f"--teacher: {path} draws other classes or sizes than {student.name}; give its own teacher")
    opened = stack.enter_context(closing(open_engine(model, engine, threads=subject.threads)))
    steps = max(model.fitted) if model.few_steps else max(STEPS)
    settings = Request([], steps, student.defaults.guidance, subject.settings.seed)
    sampling = Sampling(folder / "samples", model, opened, judge.extractor, judge.classifier)
    return Subject(sampling, settings, subject.n, subject.stage, threads=subject.threads)


def _report(folder: Path, subject: "Subject", weights: Any, swept: int, notes: list[str], seconds: dict[str, float],
            engine: "Engine | None", best: int) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """The page, and its figures; without an engine it shows no interpolations."""
    from cfgdiff.benchmarks.evaluate import evaluate as measure
    from cfgdiff.benchmarks.figures import interpolations
    from cfgdiff.benchmarks.report import write_report

    model = subject.sampling.bundle
    result = measure(subject, weights, swept, notes)
    result.seconds = seconds
    between = interpolations(engine, model, model.class_names[:5]) if engine else None
    return write_report(folder, result, between, best), result.summary()


def _draw_shard(subject: "Subject", shard: tuple[int, int]) -> None:
    subject.fill(subject.settings, subject.total, f"shard {shard[0]} of {shard[1]}", shard)
    left = len(subject.sampling.missing(subject.settings, subject.total))
    place = subject.sampling.place(subject.settings)
    click.echo(f"{place}: {f'{left} blocks are not yet' if left else 'all blocks are'} there")


def _store(model: "Bundle", summary: dict[str, Any], engine: "Engine") -> None:
    from cfgdiff.export.card import write_card
    from cfgdiff.export.description import store_evaluation
    from cfgdiff.runtime import load_bundle

    store_evaluation(model, summary)
    if (model.path / "README.md").is_file():
        write_card(load_bundle(model.path), engine)


def _real(data: Path | None, bundle: "Bundle", cas: bool) -> "PictureSet | None":
    """The real pictures. A missing package shows here, before the work."""
    for name in ("jinja2", *(data is not None) * ("matplotlib", "torch_fidelity"), *cas * ("torch", "onnx")):
        import_module(name)
    if data is None:
        return None
    from cfgdiff.trainer.data import load_held_out

    return load_held_out(data, bundle.picture_shape[1], bundle.class_names, "bundle").in_memory()


def _check_store(folder: Path, shard: tuple[int, int] | None) -> None:
    """Before hours of sampling, not after."""
    from cfgdiff.runtime.errors import Failure

    if shard is not None:
        raise click.UsageError(
            "--store: is for the last call, that makes the report, found --shard; leave one of them out"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(f"--store: {folder} cannot be written; give a copy of the bundle")


@contextmanager
def _stage(seconds: dict[str, float], label: str, length: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on standard error where that is a terminal; the time of the stage is kept in `seconds`."""
    started = time.perf_counter()
    with progress_bar(label, length) as watch:
        yield watch
    name = label.split(",")[0]
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def _headline(summary: dict[str, Any]) -> str:
    parts, quality = [], summary.get("quality", {})
    if "frechet" in quality:
        parts.append(f"{summary['called']['frechet']} {quality['frechet']['mean']:.2f}")
    if "cas" in quality:
        parts.append(f"classification accuracy score {quality['cas']['mean']:.1%}")
    if "class accuracy" in summary:
        parts.append(f"class accuracy {summary['class accuracy']:.1%}")
    if "nearest" in summary:
        parts.append(f"{summary['nearest']['samples']['copies']} copies in {summary['nearest']['samples']['n']}")
    return ", ".join(parts) or f"{summary['n']} samples"
