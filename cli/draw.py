"""Draws the pictures of a job into files: progress, previews, continuing what is there, making a picture again."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.archives import Tar
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.generate import class_labels, to_uint8
from cfgdiff.runtime.images import encoded, load_picture, read_note, read_rgb
from cfgdiff.runtime.outputs import PICTURES, Folder, Gif, check_place, is_file_name, kind_of, output
from cfgdiff.runtime.plan import Plan

from .job import Job, digest, from_note
from .preview import Preview


class CountingEngine:
    """An engine that counts the network rows it evaluates, B + G a call."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, 0
        self.name, self.precision, self.max_batch = engine.name, engine.precision, engine.max_batch

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        answer = self.engine.predict(sample, timestep, class_label, guidance)
        self.rows += len(sample) + len(guidance)
        return answer

    def close(self) -> None:
        """Close the engine inside."""
        self.engine.close()


class Drawing:
    """A job with all that it needs to be drawn."""

    def __init__(self, bundle: Bundle, job: Job, plan: Plan, engine: Engine, batch: int) -> None:
        self.bundle, self.job, self.plan, self.batch = bundle, job, plan, min(batch, engine.max_batch)
        self.engine = CountingEngine(engine)

    def note(self, i: int) -> dict[str, Any]:
        """What picture i says of itself."""
        return self.job.note(i, self.plan) | self.model

    @property
    def model(self) -> dict[str, Any]:
        """What notes say of the model and the engine."""
        found = digest(self.bundle, self.engine.precision)
        return {"model": self.bundle.name, "model_sha256": found, "engine": self.engine.name, "precision": self.engine.precision}

    def generate(self, positions: list[int], watch: Callable[[int, np.ndarray], object] | None) -> Iterator[tuple[int, np.ndarray]]:
        """See `cfgdiff.runtime.generate`."""
        return generate(self.engine, self.bundle, batch=self.batch, watch=watch, **self.job.arguments(positions))


@dataclass(frozen=True)
class Drawn:
    """When the first batch was there (`time.perf_counter`), and how many pictures were drawn."""

    first: float
    n: int


def draw(drawing: Drawing, out: Path, kind: str, columns: int | None, resume: bool, stream: bool) -> Drawn:
    """Draw all pictures, or those that are missing.

    Args:
        columns: of the grid, and pictures of an interpolation; None: no interpolation, and as square as it gets.
    """
    labels, first_done = class_labels(drawing.bundle, drawing.job.classes), time.perf_counter()
    with output(out, labels, drawing.note, kind, columns, resume) as sink:
        missing = np.arange(len(labels))
        if resume and isinstance(sink, Folder | Tar):
            missing = _whole_batches(sink.missing(), len(labels), drawing.batch)
        if len(missing):
            watchers = [sink.see] if isinstance(sink, Gif) else []
            with _progress(len(missing), drawing.plan.steps, stream) as told:
                for first, pictures in drawing.generate(missing.tolist(), lambda first, x0: [w(first, x0) for w in (told, *watchers)]):
                    first_done = time.perf_counter() if first == 0 else first_done
                    sink.add(missing[first : first + len(pictures)], pictures)
    drawing.engine.close()
    return Drawn(first_done, len(missing))


def _whole_batches(missing: np.ndarray, n: int, batch: int) -> np.ndarray:
    """All pictures of the batches that lack one: an engine's last bit may depend on what else is in a batch."""
    return np.flatnonzero(np.isin(np.arange(n) // max(1, batch), missing // max(1, batch)))


def redraw(file: Path, bundle: Bundle, out: Path, edit: Any, opened: Callable[[str, str], tuple[Engine, str]]) -> str:
    """Draw the picture of `file` again from its note and compare the two: in words.

    Args:
        opened: from the names of the engine and the precision in the note, an engine, and why it is another, where it is.
    """
    check_place(out)
    note, target = read_note(file), out if is_file_name(out) else out / file.name
    if target.suffix.lower() not in PICTURES:
        raise BadInput(f"--out: expected a folder, or {', '.join(PICTURES)} for a picture that is made again, found {out}")
    if target.resolve() == file.resolve():
        raise BadInput(f"--out: expected another place than that of {file}, which is kept; give --out NAME.png")
    if not all(isinstance(note.get(key), str) for key in ("engine", "precision", "model_sha256")):
        raise Failure(f"{file}: its note lacks the model; expected a picture of a folder or .tar as written by cfgdiff-run")
    job, wanted = from_note(note, *edit), note["model_sha256"]
    mode = "RGB" if bundle.image_shape[0] == 3 else "L"
    before = np.atleast_3d(np.asarray(read_rgb(load_picture(file, str(file)), str(file)).convert(mode)))
    if (found := digest(bundle, note["precision"])) != wanted:
        raise Failure(
            f"{file}: was made with model {note.get('model')} ({wanted[:12]}…), found {bundle.name} ({found[:12]}…); give --model"
        )
    engine, remark = opened(note["engine"], note["precision"])
    try:
        drawing = Drawing(bundle, job, job.plan(bundle), engine, 1)
        ((_, pictures),) = drawing.generate([0], None)
    except BadInput as error:
        raise Failure(f"{file}: what its note says cannot be drawn ({error}); is it as cfgdiff-run wrote it?") from None
    if before.shape != pictures[0].shape:
        raise Failure(f"{file}: expected a picture of {pictures[0].shape}, as its note says, found {before.shape}")
    apart = int(np.abs(pictures[0] - before.astype(int)).max())
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, encoded(pictures[0], kind_of(target), drawing.note(0)))
    drawing.engine.close()
    same = "the same pixels" if not apart else f"differs by up to {apart} grey levels"
    drawn_by = f"{file.name} was drawn by {note['engine']}, {note['precision']}"
    why = f", which is not available here: {remark}" if remark else ""
    return f"{target}: {same} ({engine.name}, {engine.precision}; {drawn_by}{why})"


@contextmanager
def _progress(n: int, steps: int, stream: bool) -> Iterator[Callable[[int, np.ndarray], object]]:
    """Told of every evaluation: on a terminal a progress bar with pictures a second on standard error, or the pictures themselves."""
    terminal, started, done = sys.stderr.isatty(), time.perf_counter(), 0
    if stream and not terminal:
        click.echo("--stream: standard error is no terminal; take --out NAME.gif to see the denoising", err=True)
    if stream and terminal:
        preview, seen = Preview(sys.stderr), dict[int, int]()

        def show(first: int, x0: np.ndarray) -> None:
            if first not in seen:
                preview.forget()
            seen[first] = seen.get(first, 0) + 1
            preview.show(to_uint8(x0[:8]), f"pictures {first} .. {first + len(x0) - 1} of {n}: evaluation {seen[first]} of {steps}")

        yield show
        return

    def rate(_: object) -> str:
        return f"{done / steps / max(1e-9, time.perf_counter() - started):.1f} pictures/s"

    with click.progressbar(length=n * steps, label="sampling", file=sys.stderr, hidden=not terminal, item_show_func=rate) as bar:

        def count(first: int, x0: np.ndarray) -> None:
            nonlocal done
            done += len(x0)
            bar.update(len(x0))

        yield count
