"""`cfgdiff eval --from`: measures pictures that are there, in finished shards, or statistics of them, which `--stats`
wrote."""

import glob
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .flags import typed_flags

if TYPE_CHECKING:
    from cfgdiff.benchmarks.blocks import Samples
    from cfgdiff.benchmarks.features import Classifier, Extractor
    from cfgdiff.benchmarks.subject import Stage, Subject
    from cfgdiff.runtime import Bundle
    from cfgdiff.runtime.places import Place
    from cfgdiff.runtime.shards import Manifest

OF_DRAWING = ("guidance", "interval", "steps", "sampler", "seed", "engine", "store", "sweep", "teacher")
OF_PICTURES = ("cas", "repeats", "best", "shard", "quick")  # which statistics do not hold


@dataclass(frozen=True)
class Source:
    """What `--from` names: files of statistics, or a set of finished shards.

    Attributes:
        files: of statistics; empty for a set.
        place, shards: of the set.
    """

    files: tuple[Path, ...] = ()
    place: "Place | None" = None
    shards: "tuple[Manifest, ...]" = ()


def open_source(path: Path | None, stats: Path | None) -> Source:
    """Checks the flags beside it, too. Raises `Failure` where nothing is there, UsageError for wrong flags."""
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.places import open_place
    from cfgdiff.runtime.shards import read_manifests
    from cfgdiff.trainer.shard_order import as_url

    if path is None:
        raise click.UsageError("--stats: sums up the pictures of finished shards, found no --from DEST")
    typed = typed_flags(click.get_current_context())
    of_statistics = path.suffix == ".npz"
    for name in (*OF_DRAWING, *(OF_PICTURES if of_statistics else ())):
        if name in typed:
            there = "statistics hold no pictures" if name in OF_PICTURES else "the pictures are there, nothing is drawn"
            raise click.UsageError(f"{typed[name]}: has no effect with --from: {there}; leave it out")
    if not of_statistics:
        place = open_place(as_url(path) or path)
        return Source(place=place, shards=tuple(read_manifests(place)))
    if stats is not None:
        raise click.UsageError("--stats: is written from shards, but --from names statistics; leave one of them out")
    files = tuple(Path(name) for name in sorted(glob.glob(str(path)))) or ((path,) if path.is_file() else ())
    if not files:
        raise Failure(f"{path}: no such file; expected what --stats wrote, as 'part-*.npz'")
    return Source(files)


def bundle_of(source: Source, bundle: Path | None) -> "Bundle":
    """The bundle that was given, else the packaged one whose name the source says; it must have drawn the pictures."""
    from cfgdiff.benchmarks.from_shards import check_model
    from cfgdiff.benchmarks.moments import load_statistics
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.bundle import packaged_models
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.notes import model_digest

    drawn = load_statistics(source.files[0]).protocol if source.files else {}
    name = str(drawn.get("model")) if source.files else source.shards[0].model
    if bundle is None and name not in packaged_models():
        raise Failure(f"{source.files[0] if source.files else source.place}: was drawn by '{name}'; give its bundle")
    whole, stages = load_bundle(name if bundle is None else bundle), drawn.get("stages", ())
    if source.place is not None:
        model = replace(whole, stages=whole.stages[: len(source.shards[0].stage_models)])
        check_model(source.place, source.shards[0], model)
        return model
    model = replace(whole, stages=whole.stages[: len(stages)])
    for each, by in zip(model.models, (drawn, *stages), strict=False):
        if (own := model_digest(each, str(by["precision"]))) != by["model sha256"]:
            found = f"is of the graph {by['model sha256']:.12} of '{name}', where {each.name} has {own:.12}"
            raise Failure(f"{source.files[0]}: {found}; give the bundle that drew it")
    return model


def samples_of(
    source: Source, folder: Path, model: "Bundle", n: int | None, extractor: "Extractor", judge: "Classifier | None"
) -> "Samples":
    """The first n pictures of a set; without n none of them, only how they would be measured."""
    from cfgdiff.benchmarks.blocks import Samples
    from cfgdiff.benchmarks.from_shards import ShardSamples, first_of

    if n is None or source.place is None:
        return Samples(folder, model, extractor, judge)
    shards = first_of(source.place, list(source.shards), n)
    return ShardSamples(folder, model, source.place, shards, extractor, judge)


def write_statistics(
    source: Source, stats: Path, n: int | None, share: tuple[int, int], judges: "Samples",
    stage: "Stage",
) -> None:  # fmt: skip
    """Measure shards into a file, and say what is in it."""
    from cfgdiff.benchmarks.from_shards import drawn_with, first_of
    from cfgdiff.benchmarks.moments import measure_shards, selected
    from cfgdiff.runtime.errors import Failure

    assert source.place is not None
    extractor, judged = judges.extractor, judges.judged()
    if extractor.empty:
        raise Failure("--stats: no features are available to sum up; give --alexnet FILE, or --features classifier")
    if n is not None and share == (1, 1):
        first_of(source.place, list(source.shards), n)  # else another machine may have the rest
    protocol = drawn_with(source.shards[0]) | judged | {"n": n}
    shards = selected(source.shards, n, share)
    with stage("shards", sum(shard.count for shard in shards)) as watch:
        total = measure_shards(stats, source.place, shards, protocol, extractor, judges.classifier, watch)
    click.echo(f"{stats}: {total.moments.count} pictures of {len(total.shards)} shards")


def measure_statistics(source: Source, subject: "Subject", n: int | None, notes: list[str]) -> dict[str, Any]:
    """The summary of statistics, as `Result.summary` gives it of samples. Raises `Failure`."""
    from cfgdiff.benchmarks.measures import frechet, gaussian, quality_names
    from cfgdiff.benchmarks.moments import merge_files
    from cfgdiff.benchmarks.subject import even
    from cfgdiff.runtime.errors import Failure

    total, judged, real = merge_files(source.files), subject.sampling.judged(), subject.real
    for key, value in judged.items():
        if total.protocol.get(key) != value:
            found = f"has {key} {total.protocol.get(key)}, found {value} here"
            raise Failure(f"{source.files[0]}: {found}; take the same --features, --alexnet and --classifier")
    count = total.moments.count
    if count < (wanted := n or total.protocol["n"] or 2):
        raise Failure(
            f"{source.files[0]}: expected {wanted} pictures in all files together, found {count}; add the rest"
        )
    if missing := sorted(set(range(max(total.shards) + 1)) - total.shards.keys()):
        notes.append(f"Without shards {', '.join(map(str, missing[:10]))}{', …' if len(missing) > 10 else ''}.")
    tree: dict[str, Any] = {"n": count, "protocol": total.protocol, "notes": notes}
    if real is not None:
        distance = frechet(total.moments.gaussian, real.reference)
        tree["quality"] = {"frechet": {"mean": distance, "deviation": 0.0, "of": 1}}
        tree["called"] = {"frechet": quality_names(subject.sampling.extractor.inception)["frechet"]}
        chosen = real.held_out_features[even(len(real.held_out), count)]
        if len(chosen) > 1:
            tree["held-out pictures"] = {"frechet": frechet(gaussian(chosen), real.reference)}
    if total.accuracy is not None:
        tree |= {"class accuracy": total.accuracy, "confusion": np.asarray(total.counts).tolist()}
    return tree


def report_statistics(
    folder: Path, source: Source, subject: "Subject", n: int | None, notes: list[str], seconds: dict[str, float]
) -> tuple[Path, dict[str, Any]]:
    """report.json alone, for statistics hold no pictures to show; and what is in it."""
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.files import write_json

    summary = measure_statistics(source, subject, n, notes) | {"seconds": seconds}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out: {folder} cannot be made ({error.strerror}); choose another place") from None
    write_json(folder / "report.json", summary)
    return folder / "report.json", summary
