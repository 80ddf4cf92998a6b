"""Opens the engine of a run: the one that the flags ask for, or the one that drew the pictures which are there already."""

from dataclasses import dataclass
from pathlib import Path

from cfgdiff.runtime import Bundle, Engine, archives, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import read_note
from cfgdiff.runtime.plan import Plan


@dataclass(frozen=True)
class Wanted:
    """--engine, --precision, --threads, --uncertified."""

    engine: str
    precision: str
    threads: int | None
    uncertified: bool

    def open(self, bundle: Bundle, plan: Plan, n: int, batch: int) -> Engine:
        """For n pictures. Raises `Failure` or `BadInput`."""
        return open_engine(bundle, self.engine, self.precision, self.threads, self.uncertified, plan.rows(n), min(n, batch))

    def open_as_noted(self, bundle: Bundle, flag: str, engine: str, precision: str) -> tuple[Engine, str]:
        """What drew a picture, by its note, where the flags do not say otherwise.

        Returns:
            the engine, and, where it is another at that precision, why the one in the note is not available here.

        Raises:
            Failure: none works at that precision; it names `flag`.
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
            what = f"{flag}: was drawn by {engine}, {precision}, and no engine here computes in {at} ({why})"
            raise Failure(f"{what}; --precision float32 comes close") from None


def first_note(out: Path, kind: str) -> tuple[str, str] | None:
    """(engine, precision) by the note of the first picture in a folder or .tar; None where there is none or the note lacks them."""
    if out.suffix.lower() == ".tar":
        note = archives.first_note(out) or {}
    else:
        there = sorted(path for path in out.glob(f"*.{kind}") if path.stem.isdecimal())
        note = read_note(there[0]) if there else {}
    return (str(note["engine"]), str(note["precision"])) if {"engine", "precision"} <= note.keys() else None
