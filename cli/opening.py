"""Opens what a command works with: the engine that the flags ask for, or that drew the pictures that are there; a model
that takes any number of steps."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfgdiff.runtime import Bundle, Engine, Plan, archives, load_bundle, open_engine
from cfgdiff.runtime.bundle import PACKAGED
from cfgdiff.runtime.cascade import Cascade
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import read_note
from cfgdiff.runtime.measured import doubt

from .errors import one_line

log = logging.getLogger("cfgdiff")
SINGLE = f"take a model of one network, as {PACKAGED}"


@dataclass(frozen=True)
class Wanted:
    """--engine, --precision, --threads, --uncertified."""

    engine: str
    precision: str
    threads: int | None
    uncertified: bool

    def open(self, bundle: Bundle, plan: Plan) -> Engine:
        """For all pictures of a plan. Raises `Failure` or `BadInput`."""
        batch = min(len(plan), plan.request.batch)
        return open_engine(bundle, self.engine, self.precision, self.threads, self.uncertified, plan.rows, batch)

    def open_as_noted(
        self, bundle: Bundle, flag: str, engine: str, precision: str, *stages: tuple[str, str]
    ) -> tuple[Engine, str]:
        """The engine that drew a picture, by its note, unless the flags name another; in a cascade, all of them.

        Returns:
            the engine, and, where it is another of that precision, why the one in the note is not available here.

        Raises:
            Failure: no engine works in that precision; it names `flag`.
        """
        if bundle.stages:
            made = (engine, precision), *stages
            if len(made) != len(bundle.models):
                expected = f"expected pictures of {len(bundle.models)} networks, found those of {len(made)}"
                raise Failure(f"{flag}: {expected}; give the same --size")
            each = [self.open_as_noted(m, flag, *way) for m, way in zip(bundle.models, made, strict=True)]
            return Cascade([opened for opened, _ in each]), next((why for _, why in each if why), "")
        settings = self.threads, self.uncertified
        at = precision if self.precision == "auto" else self.precision
        if self.engine != "auto":
            return open_engine(bundle, self.engine, at, *settings), ""
        try:
            return open_engine(bundle, engine, at, *settings), ""
        except Failure as error:
            why = str(error)
        try:
            return open_engine(bundle, "auto", at, *settings, rows=1), why
        except Failure:
            drawn = f"{flag}: was drawn by {engine}, {precision}, and no engine here computes in {at} ({why})"
            raise Failure(f"{drawn}; --precision float32 comes close") from None


def warn_of_steps(bundle: Bundle, plan: Plan) -> None:
    """A line where the model was measured to draw badly in so few evaluations."""
    if warning := doubt(bundle, plan):
        log.warning(one_line(warning.replace("`steps`", "--steps")))


def load_many_steps(path: Path | None, work: str, instead: str = SINGLE) -> Bundle:
    """A bundle for `work` that takes any number of steps. Raises `Failure` for one that was trained for a few."""
    bundle = load_single(path, work, instead)
    check_many_steps(bundle, work)
    return bundle


def check_many_steps(bundle: Bundle, work: str) -> None:
    """Raises `Failure` for a bundle that was trained for a few steps."""
    if bundle.few_steps:
        raise Failure(f"{bundle.name}: was trained for its own steps, and {work}; take {PACKAGED}, or another model")


def noted_part(bundle: Bundle, file: Path) -> Bundle:
    """The part of a cascade that drew the picture in `file`, by its note. Raises `Failure` for one of fewer stages."""
    noted = read_note(file).get("stages")
    n = len(noted) if isinstance(noted, list) else 0
    if n > len(bundle.stages):
        raise Failure(f"{file}: was drawn with {n} super-resolution stages, found {len(bundle.stages)}; give --model")
    return replace(bundle, stages=bundle.stages[:n])


def noted_stages(note: dict[str, Any]) -> list[dict[str, Any]]:
    """What the note of a cascade's picture says of the models and engines of its stages."""
    made = note.get("stage_models")
    return [entry if isinstance(entry, dict) else {} for entry in made] if isinstance(made, list) else []


def load_single(path: Path | str | None, work: str, instead: str = SINGLE) -> Bundle:
    """A bundle of one network for `work`. Raises `Failure` for a cascade, and for a stage of one."""
    bundle = load_bundle(path)
    if bundle.stages or bundle.stage:
        raise Failure(f"{bundle.path}: is of a cascade, and {work}; {instead}")
    return bundle


def first_note(out: Path, kind: str) -> tuple[Any, ...] | None:
    """(engine, precision, *those of stages) in the note of the first picture of a folder or .tar; None where there is
    none."""
    if out.suffix.lower() == ".tar":
        note = archives.first_note(out) or {}
    else:
        files = sorted(path for path in out.glob(f"*.{kind}") if path.stem.isdecimal())
        note = read_note(files[0]) if files else {}
    if not {"engine", "precision"} <= note.keys():
        return None
    stages = [(str(entry.get("engine")), str(entry.get("precision"))) for entry in noted_stages(note)]
    return str(note["engine"]), str(note["precision"]), *stages
