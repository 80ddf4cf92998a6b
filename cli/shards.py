"""Draws a large set in shards: finds what is missing, makes it here or on a Ray cluster, and shows how far it is."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from cfgdiff.runtime import Bundle, Edit, Engine, Plan, Request
from cfgdiff.runtime.bundle import packaged_models
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.notes import note_of
from cfgdiff.runtime.outputs import check_place, is_file_name
from cfgdiff.runtime.places import is_url
from cfgdiff.runtime.shard_set import Recipe, ShardSet, Survey

from .errors import one_line
from .flags import progress_bar
from .opening import Wanted, warn_of_steps
from .shard_flags import Sharding
from .stages import asked_stages

MANY = 100_000  # pictures: the same engine is the fastest for more
Opened = Callable[[Bundle, Plan], Engine]
Makers = Iterator[tuple[int, str, str]]  # number of a shard that is made, the engine's name, its precision


Bar = Any  # click's


@dataclass(frozen=True)
class Made:
    """What a call did.

    Attributes:
        shards: that it was asked for.
        survey: what was there before.
        drawn: pictures.
        engine, precision: that drew; of the set, where nothing was missing.
    """

    shards: int
    survey: Survey
    drawn: int
    engine: str
    precision: str


def shard_set(bundle: Bundle, names: list[str], flags: dict[str, Any], edit: Edit | None, n: int | None,
              size: int | None, sharding: Sharding, out: Path | str, kind: str) -> ShardSet:  # fmt: skip
    """The set that the flags ask for, of which the classes `names` go round. Raises `BadInput` or `Failure`."""
    if n is None:
        raise BadInput("--n: is missing; how many pictures has the set, in all its shards?")
    if isinstance(out, Path):
        if is_file_name(out):
            raise BadInput(f"--out: expected a folder or a URL for shards, found {out}; see --shard-format")
        check_place(out)
    settings = {name: value for name, value in flags.items() if name not in ("classes", "interpolate", "frames")}
    settings["stages"] = asked_stages(len(bundle.stages if size is None else bundle.up_to(size).stages), settings)
    request = Request(names, edit=edit, **settings)
    own = packaged_models().get(bundle.name) == bundle.path
    model = bundle.name if own else os.path.abspath(bundle.path)
    return ShardSet(Recipe(str(out), model, request, n, sharding.size, sharding.format, kind, size), bundle)


def run_shards(shards: ShardSet, sharding: Sharding, wanted: Wanted, as_json: bool, started: float) -> None:
    """Make shards, and say what was done."""
    warn_of_steps(shards.bundle, shards.plan)
    made, seconds = draw_shards(shards, sharding, wanted), time.perf_counter() - started
    text = _report(shards, made, seconds) if as_json else one_line(_summary(shards, made, seconds))
    click.echo(text, err=not as_json)


def draw_shards(shards: ShardSet, sharding: Sharding, wanted: Wanted) -> Made:
    """Make the shards that are asked for and not finished."""
    numbers, dest = sharding.wanted(shards.count), shards.recipe.dest
    read = (sharding.check or ("size" if is_url(dest) else "sha256")) == "sha256"
    with progress_bar("checking", len(numbers)) as checked:
        survey = shards.survey(numbers, None if wanted.precision == "auto" else wanted.precision, read, checked)
    for shard, problem in survey.damaged.items():
        click.echo(f"{shards.place.at(shards.file(shard))}: {problem}; it will be made anew", err=True)
    noted = survey.other.made_by if survey.other else None
    done = Made(len(numbers), survey, 0, *(noted[0] if noted else (wanted.engine, wanted.precision)))
    if not survey.missing:
        return done
    if sharding.ray is not None:
        wanted = replace(wanted, threads=wanted.threads or 1)
    opened = partial(open_for_set, wanted, noted, sharding.shared)
    with redirect_stdout(sys.stderr), _progress(shards, survey) as progress:  # Ray prints lost machines
        makers = _here(shards, survey, opened, progress.draw)
        if sharding.ray is not None:
            makers = _on_ray(shards, survey, opened, progress.draw, sharding, wanted)
        for shard, engine, precision in makers:
            progress.finish(shard)
            done = replace(done, drawn=progress.pictures, engine=engine, precision=precision)
    return done


def open_for_set(
    wanted: Wanted, noted: Sequence[tuple[str, str]] | None, shared: bool, bundle: Bundle, plan: Plan
) -> Engine:
    """The engine that drew the set, which is `noted` with its precision, in a cascade those of all networks, unless the
    flags name another; or the first one of the set.

    Machines and actors that share a set begin at the same time and do not ask each other: all compute in float32, and
    none measures which engine is fastest, for they could find different ones.
    """
    if noted is not None:
        return wanted.open_as_noted(bundle, "--out", *noted[0], *noted[1:])[0]
    if shared:
        precision = "float32" if wanted.precision == "auto" else wanted.precision
        return replace(wanted, precision=precision).open(bundle, plan.take([0]))
    return wanted.open(bundle, plan)


def _here(shards: ShardSet, survey: Survey, opened: Opened, drawn: Callable[[int], None]) -> Makers:
    """In this process."""
    engine = opened(shards.bundle, shards.plan_of(0, min(shards.pictures(survey.missing), MANY)))
    for shard in survey.missing:
        if shard in survey.damaged or not shards.is_finished(shard):
            shards.make(shard, engine, drawn)
            yield shard, engine.name, engine.precision
    engine.close()


def _on_ray(shards: ShardSet, survey: Survey, opened: Opened, drawn: Callable[[int], None], sharding: Sharding,
            wanted: Wanted) -> Makers:  # fmt: skip
    """By the actors of a Ray cluster."""
    from cfgdiff.runtime.ray_shards import Cluster, make_on_ray

    cluster = Cluster(str(sharding.ray), sharding.actors, wanted.threads or 1)
    for shard, engine, precision in make_on_ray(shards.recipe, survey.missing, survey.damaged, cluster, opened):
        drawn(shards.pictures([shard]))
        yield shard, engine, precision


class Progress:
    """Counts what is drawn; a bar in a terminal shows it, and else, as in a log, a line for each shard."""

    def __init__(self, shards: ShardSet, survey: Survey, bar: Bar) -> None:
        self._shards, self._bar, self._since = shards, bar, time.perf_counter()
        self.pictures, self.finished, self.missing = 0, 0, len(survey.missing)

    def draw(self, pictures: int) -> None:
        """So many more pictures were drawn."""
        self.pictures += pictures
        if self._bar is not None:
            self._bar.update(pictures)

    def finish(self, shard: int) -> None:
        """A shard is finished."""
        self.finished += 1
        if self._bar is None:
            rate = self.pictures / max(1e-9, time.perf_counter() - self._since)
            name = self._shards.place.at(self._shards.file(shard))
            click.echo(f"{name}: {self.finished} of {self.missing} shards, {rate:.1f} pictures/s", err=True)

    def counted(self, _: object = None) -> str:
        """What stands behind the bar."""
        return f"{self.finished} of {self.missing} shards"


@contextmanager
def _progress(shards: ShardSet, survey: Survey) -> Iterator[Progress]:
    """While shards are made. A call that is stopped says how to continue."""
    hidden, length = not sys.stderr.isatty(), shards.pictures(survey.missing)
    with click.progressbar(length=length, label="sampling", file=sys.stderr, hidden=hidden) as bar:
        progress = Progress(shards, survey, None if hidden else bar)
        bar.item_show_func = progress.counted
        try:
            yield progress
        except (KeyboardInterrupt, SystemExit):
            click.echo(f"stopped after {progress.counted()}; the same command continues", err=True)
            raise


def _report(shards: ShardSet, made: Made, seconds: float) -> str:
    """What --json prints."""
    plan, w = shards.plan, shards.weights
    return json.dumps({
        "n": shards.recipe.n, "model": plan.bundle.name, "steps": plan.steps, "engine": made.engine,
        "precision": made.precision, "sampler": plan.course.sampler, "spacing": plan.course.spacing,
        "guidance": w[0] if len(set(w)) == 1 else w, "seed": plan.request.seed, "pictures": made.drawn,
        "shards": {"asked": made.shards, "kept": len(made.survey.finished), "made": len(made.survey.missing),
                   "damaged": len(made.survey.damaged)},
        "seconds": round(seconds, 4),
    } | ({"stages": note_of(plan, 0)["stages"]} if plan.stages else {}))  # fmt: skip


def _summary(shards: ShardSet, made: Made, seconds: float) -> str:
    """One line."""
    kept, n = len(made.survey.finished), len(made.survey.missing)
    rest = f", {kept} were finished" if kept else ""
    drawn = f"{made.drawn} pictures in {n} shard{'s' * (n != 1)} in {seconds:.1f} s"
    return f"{drawn} ({made.engine}, {made.precision}){rest}: {shards.place}"
