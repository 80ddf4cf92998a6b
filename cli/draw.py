"""Draws the pictures of a plan into files, shows how far it is, resumes, and makes a picture again from its note."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from cfgdiff.runtime import Bundle, Edit, Engine, Plan, resolve, sample
from cfgdiff.runtime.archives import Tar
from cfgdiff.runtime.counting import counting
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.generate import Watch, to_uint8
from cfgdiff.runtime.images import encoded, load_picture, read_note, read_rgb
from cfgdiff.runtime.notes import model_digest, model_note, note_of, request_of
from cfgdiff.runtime.outputs import PICTURES, Folder, Gif, check_place, is_file_name, kind_of, output

from .edit import check_original
from .opening import noted_stages
from .preview import Preview


class Drawing:
    """A plan and the engine that draws it."""

    def __init__(self, bundle: Bundle, plan: Plan, engine: Engine) -> None:
        self.bundle, self.plan = bundle, plan
        self.engine, self.counters = counting(bundle, engine)

    @property
    def rows(self) -> int:
        """The rows computed by all networks."""
        return sum(counter.rows for counter in self.counters)

    def note(self, i: int) -> dict[str, Any]:
        """The note of picture i."""
        return note_of(self.plan, i) | model_note(self.bundle, self.engine)


@dataclass(frozen=True)
class Drawn:
    """When the first batch was there (`time.perf_counter`), and how many pictures were drawn."""

    first: float
    n: int


@dataclass(frozen=True)
class Target:
    """Where pictures go.

    Attributes:
        out: a folder, or a file; see `output`.
        kind: of the pictures in a folder or .tar.
        columns: of the grid, and pictures of an interpolation; None: no interpolation, and as square as it gets.
        resume: draw only the pictures that are missing.
        stream: show the pictures in the terminal.
    """

    out: Path
    kind: str = "png"
    columns: int | None = None
    resume: bool = False
    stream: bool = False


def draw(drawing: Drawing, target: Target) -> Drawn:
    """Draw all pictures, or those that are missing."""
    plan, first_done = drawing.plan, time.perf_counter()
    _refuse_views(plan, target)
    with output(target.out, plan.labels, drawing.note, target.kind, target.columns, target.resume) as sink:
        missing = np.arange(len(plan))
        if target.resume and isinstance(sink, Folder | Tar):
            missing = _whole_batches(sink.missing(), len(plan), plan.batch(drawing.engine.max_batch))
        if len(missing):
            watchers = [sink.see] if isinstance(sink, Gif) else []
            with _progress(len(missing), plan.evaluations, target.stream) as shown:
                watch = partial(_each, [shown, *watchers])
                for first, pictures in sample(drawing.engine, plan.take(missing), watch):
                    first_done = time.perf_counter() if first == 0 else first_done
                    sink.add(missing[first : first + len(pictures)], pictures)
    drawing.engine.close()
    return Drawn(first_done, len(missing))


def _refuse_views(plan: Plan, target: Target) -> None:
    """Raises `BadInput` for what shows the evaluations of one network, asked of a cascade."""
    size = plan.bundle.image_shape[1]
    wanted = {"stream": target.stream, "out": target.out.suffix.lower() == ".gif" and target.columns is None}
    for parameter in (name for name, asked in wanted.items() if plan.stages and asked):
        problem = f"shows how one network denoises, but {plan.bundle.name} is a cascade"
        raise BadInput(f"{parameter}: {problem}; leave it out, or take the base alone with --size {size}")


def _each(watchers: list[Watch], first: int, x0: np.ndarray) -> None:
    for watch in watchers:
        watch(first, x0)


def _whole_batches(missing: np.ndarray, n: int, batch: int) -> np.ndarray:
    """All pictures of the batches that lack one: an engine's last bit may depend on what else is in a batch."""
    return np.flatnonzero(np.isin(np.arange(n) // batch, missing // batch))


def redraw(file: Path, bundle: Bundle, out: Path, edit: Edit | None,
           opened: Callable[..., tuple[Engine, str]]) -> str:  # fmt: skip
    """Draw the picture of `file` again from its note and compare the two, in a line for the user.

    Args:
        opened: takes the engines and the precisions of the note; see `Wanted.open_as_noted`.
    """
    target, note = _target(file, out), read_note(file)
    made_by, request = _made_by(file, note, len(bundle.models)), request_of(note, edit)
    check_original(note.get("from"), edit)
    mode = "RGB" if bundle.image_shape[0] == 3 else "L"
    before = np.atleast_3d(np.asarray(read_rgb(load_picture(file, str(file)), str(file)).convert(mode)))
    for model, entry in zip(bundle.models, made_by, strict=True):
        if (digest := model_digest(model, entry["precision"])) != entry["model_sha256"]:
            made = f"was made with model {note.get('model')} ({entry['model_sha256'][:12]}…)"
            raise Failure(f"{file}: {made}, found {model.name} ({digest[:12]}…); give --model")
    ways = [(entry["engine"], entry["precision"]) for entry in made_by]
    engine, remark = opened(*ways[0], *ways[1:])
    try:
        drawing = Drawing(bundle, resolve(bundle, request), engine)
        ((_, pictures),) = sample(drawing.engine, drawing.plan)
    except BadInput as error:
        raise Failure(f"{file}: its note cannot be drawn ({error}); is it as cfgdiff-run wrote it?") from None
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


def _made_by(file: Path, note: dict[str, Any], n: int) -> list[dict[str, str]]:
    """What a note says of its n models and their engines. Raises `Failure` where it does not."""
    made_by, keys = [note, *noted_stages(note)], ("engine", "precision", "model_sha256")
    if len(made_by) != n or not all(isinstance(entry.get(key), str) for entry in made_by for key in keys):
        expected = "expected a picture of a folder or .tar as written by cfgdiff-run"
        raise Failure(f"{file}: its note lacks the model; {expected}")
    return made_by


def _target(file: Path, out: Path) -> Path:
    """Where the new picture of `file` goes. Raises `BadInput` or `Failure`."""
    check_place(out)
    target = out if is_file_name(out) else out / file.name
    if target.suffix.lower() not in PICTURES:
        expected = f"expected a folder, or {', '.join(PICTURES)} for a picture that is made again"
        raise BadInput(f"--out: {expected}, found {out}")
    if target.resolve() == file.resolve():
        raise BadInput(f"--out: expected another place than that of {file}, which is kept; give --out NAME.png")
    return target


@contextmanager
def _progress(n: int, steps: int, stream: bool) -> Iterator[Watch]:
    """A `Watch` that shows on standard error, if a terminal, a bar with pictures a second, or the pictures."""
    terminal, started, done = sys.stderr.isatty(), time.perf_counter(), 0
    if stream and not terminal:
        click.echo("--stream: standard error is no terminal; take --out NAME.gif to see the denoising", err=True)
    if stream and terminal:
        preview, seen = Preview(sys.stderr), dict[int, int]()

        def show(first: int, x0: np.ndarray) -> None:
            if first not in seen:
                preview.forget()
            seen[first] = seen.get(first, 0) + 1
            pictures = f"pictures {first} .. {first + len(x0) - 1} of {n}"
            preview.show(to_uint8(x0[:8]), f"{pictures}: evaluation {seen[first]} of {steps}")

        yield show
        return

    def rate(_: object) -> str:
        return f"{done / steps / max(1e-9, time.perf_counter() - started):.1f} pictures/s"

    with click.progressbar(
        length=n * steps, label="sampling", file=sys.stderr, hidden=not terminal, item_show_func=rate
    ) as bar:

        def count(first: int, x0: np.ndarray) -> None:
            nonlocal done
            done += len(x0)
            bar.update(len(x0))

        yield count
