"""Opens what a command works with: the engine that the flags ask for, or that drew the pictures that are there; a model
that takes any number of steps."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cfgdiff.runtime import Bundle, Engine, Plan, archives, load_bundle, open_engine
from cfgdiff.runtime.bundle import PACKAGED
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import read_note
from cfgdiff.runtime.measured import doubt

from .errors import one_line

log = logging.getLogger("cfgdiff")


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

    def open_as_noted(self, bundle: Bundle, flag: str, engine: str, precision: str) -> tuple[Engine, str]:
        """The engine that drew a picture, by its note, unless the flags name another.

        Returns:
            the engine, and, where it is another of that precision, why the one in the note is not available here.

        Raises:
            Failure: no engine works in that precision; it names `flag`.
        """
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


def load_many_steps(path: Path | None, work: str) -> Bundle:
    """A bundle for `work` that takes any number of steps. Raises `Failure` for one that was trained for a few."""
    bundle = load_bundle(path)
    if bundle.few_steps:
        raise Failure(f"{bundle.name}: was trained for its own steps, and {work}; take {PACKAGED}, or another model")
    return bundle


def first_note(out: Path, kind: str) -> tuple[str, str] | None:
    """(engine, precision) in the note of the first picture of a folder or .tar; None where there is none."""
    if out.suffix.lower() == ".tar":
        note = archives.first_note(out) or {}
    else:
        files = sorted(path for path in out.glob(f"*.{kind}") if path.stem.isdecimal())
        note = read_note(files[0]) if files else {}
    return (str(note["engine"]), str(note["precision"])) if {"engine", "precision"} <= note.keys() else None
