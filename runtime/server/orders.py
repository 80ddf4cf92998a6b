"""Large orders: drawn into files, in the background, and continued after a restart.

An order is `ID.json` in the folder, written when it arrives; its result is `ID.tar` or `ID.npz`, whole or absent.
What a restart finds without a result or an error is drawn again: a .tar from the picture on where it stopped.
"""

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..archives import Tar
from ..errors import Failure
from ..files import partial_files, remove_abandoned, write_json
from ..outputs import output
from ..plan import Plan
from .bodies import Order, plan_of
from .drawing import Served, events, preview_png
from .limits import Limits
from .refusals import Refused
from .scheduler import Job, Preview

log = logging.getLogger("cfgdiff.server")
PIECE = 256  # pictures that are submitted at a time: they are in memory until the first of them is written
AT_ONCE = 4  # orders, in equal shares: a large one does not hold up small ones
AHEAD = 2  # pieces in the scheduler, so that the next fills the batches that the last leaves half empty
TRIES = 3  # of a piece whose engine fails
SHOWN = 16  # previews
PRIORITY = -1  # below requests that somebody waits for
UNFINISHED, DONE, FAILED = ("queued", "running"), "done", "failed"


class Stopped(Exception):
    """The order was removed, or the server is about to end."""


@dataclass
class Entry:
    """An order and how far it is.

    Attributes:
        done: pictures in the result so far.
        watchers: clients that look at its previews, which are PNGs by the picture's number.
        jobs: what the scheduler draws of it now.
    """

    id: str
    created: int
    body: Order
    status: str = "queued"
    error: str | None = None
    n: int = 0
    done: int = 0
    watchers: int = 0
    previews: dict[int, bytes] = field(default_factory=dict)
    stopped: bool = False
    jobs: deque[tuple[np.ndarray, Job]] = field(default_factory=deque)

    @property
    def public(self) -> dict[str, Any]:
        """As clients see it."""
        about = {"format": self.body.format, "model": self.body.model, "seed": self.body.seed, "error": self.error}
        counts = {"status": self.status, "n": self.n, "done": self.done}
        return {"id": self.id, "object": "job", "created_at": self.created} | counts | about

    def stop(self) -> None:
        """Its thread raises `Stopped` at the next picture."""
        self.stopped = True
        for _, job in list(self.jobs):
            job.cancel()


class Orders:
    """The orders in a folder, which are read at once, and the threads that draw them. Raises `Failure`."""

    def __init__(self, folder: Path, served: dict[str, Served], limits: Limits) -> None:
        self._folder, self._served, self._limits = folder, served, limits
        self._entries: dict[str, Entry] = {}
        self._changed, self._closing, self._ended = threading.Condition(), False, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(AT_ONCE)]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.glob("*.json")):
                self._read(path)
            for path in self._folder.glob(".*.partial"):
                if path.name.split(".")[1] not in self._entries:  # its order was removed while it was drawn
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise Failure(f"jobs_dir: cannot be used ({error.strerror}); expected a folder to write to") from None

    def start(self) -> None:
        """Draw what is unfinished, and what comes."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop drawing. What is unfinished is continued by the next `start`."""
        with self._changed:
            self._closing = True
            self._ended.set()
            for entry in self._entries.values():
                entry.stop()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def add(self, body: Order) -> Entry:
        """Take an order whose model is set. Raises `BadInput`, or `Refused` where there are too many."""
        seed = secrets.randbelow(2**53) if body.seed is None else body.seed
        body = body.model_copy(update={"seed": seed})  # so that it draws the same pictures after a restart
        plan = plan_of(body, self._served[str(body.model)].bundle, self._limits.order)
        entry = Entry(secrets.token_hex(8), int(time.time()), body, n=len(plan))
        with self._changed:
            if len(self._entries) >= self._limits.orders:
                kept = f"the server keeps {self._limits.orders} jobs; DELETE one that is finished"
                raise Refused(429, kept, code="rate_limit_exceeded", retry_after=60)
            self._write(entry)
            self._entries[entry.id] = entry
            self._changed.notify_all()
        return entry

    def all(self) -> list[Entry]:
        """The orders, the oldest first."""
        with self._changed:
            return list(self._entries.values())

    def get(self, name: str) -> Entry:
        """Raises `Refused`."""
        entry = self._entries.get(name)
        if entry is None:
            raise Refused(404, "there is no such job", code="job_not_found")
        return entry

    def result(self, entry: Entry) -> Path:
        """Where its file is, or will be."""
        return self._folder / f"{entry.id}.{entry.body.format}"

    def remove(self, name: str) -> None:
        """Forget an order and its result; one that is drawn stops. Raises `Refused`."""
        with self._changed:
            entry = self.get(name)
            del self._entries[name]
            (self._folder / f"{name}.json").unlink(missing_ok=True)
            entry.stop()
            if entry.status != "running":
                self._erase(entry)

    def _erase(self, entry: Entry) -> None:
        path = self.result(entry)
        for file in (path, *partial_files(path)):
            file.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            tree = json.loads(path.read_bytes())
            body = Order.model_validate(tree["body"])
            entry = Entry(path.stem, int(tree["created"]), body, str(tree["status"]), tree["error"], int(tree["n"]))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: not a job of this server (%s); it stays as it is", path, type(error).__name__)
            return
        if self.result(entry).is_file():
            entry.status, entry.done = DONE, entry.n
        elif entry.status != FAILED:
            entry.status = "queued"
        self._entries[entry.id] = entry

    def _write(self, entry: Entry) -> None:
        body = entry.body.model_dump(by_alias=True)
        tree = {"created": entry.created, "status": entry.status, "error": entry.error, "n": entry.n, "body": body}
        write_json(self._folder / f"{entry.id}.json", tree)

    def _next(self) -> Entry | None:
        """The next order to draw; waits for one. None: the server is about to end."""
        with self._changed:
            while not self._closing:
                for entry in self._entries.values():
                    if entry.status == "queued" and entry.body.model in self._served:  # else for another start
                        entry.status = "running"
                        return entry
                self._changed.wait()
        return None

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            try:
                self._draw(entry)
                end: tuple[str, str | None] = DONE, None
            except Stopped:
                end = "queued", None
            except Exception as error:  # whatever it is, the next order must be drawn
                log.exception("job %s failed", entry.id)
                end = FAILED, str(error) if isinstance(error, Refused) else "drawing failed; the server's log says why"
            with self._changed:
                entry.status, entry.error = end
                entry.previews = {}
                if entry.id not in self._entries:
                    self._erase(entry)
                elif entry.status == FAILED:
                    self._write(entry)

    def _draw(self, entry: Entry) -> None:
        served = self._served[str(entry.body.model)]
        plan, path = plan_of(entry.body, served.bundle, self._limits.order), self.result(entry)
        with output(path, plan.labels, partial(served.note, plan), resume=entry.body.format == "tar") as sink:
            missing = sink.missing() if isinstance(sink, Tar) else np.arange(len(plan))
            entry.done = len(plan) - len(missing)
            for indices, pictures in self._pieces(entry, served, plan, missing):
                sink.add(indices, pictures)
                entry.done += len(indices)
        remove_abandoned(path)

    def _pieces(
        self, entry: Entry, served: Served, plan: Plan, missing: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The missing pictures, in order, with their indices."""
        pieces = deque(missing[first : first + PIECE] for first in range(0, len(missing), PIECE))
        tries = TRIES
        try:
            while pieces or entry.jobs:
                while pieces and len(entry.jobs) < AHEAD:
                    entry.jobs.append((pieces[0], self._submitted(entry, served, plan.take(pieces[0]))))
                    pieces.popleft()
                indices, job = entry.jobs[0]
                try:
                    pictures = self._collected(entry, job, indices)
                except Refused as error:
                    tries -= 1
                    if entry.stopped or tries == 0:
                        raise (Stopped() if entry.stopped else error) from None
                    log.warning("job %s: a piece failed (%s) and is drawn again", entry.id, error)
                    entry.jobs[0] = indices, self._submitted(entry, served, plan.take(indices))
                    continue
                entry.jobs.popleft()
                tries = TRIES
                yield indices, pictures
        finally:
            while entry.jobs:
                entry.jobs.popleft()[1].cancel()

    def _submitted(self, entry: Entry, served: Served, plan: Plan) -> Job:
        """A piece in the scheduler; waits while its queue is full."""
        while not (entry.stopped or self._closing):
            try:
                return served.submit(plan, priority=PRIORITY, watch=entry.watchers > 0)
            except Refused as refused:
                self._ended.wait(min(refused.retry_after or 1, 10))  # or until the end, which closes the scheduler, too
        raise Stopped

    def _collected(self, entry: Entry, job: Job, indices: np.ndarray) -> np.ndarray:
        pictures: dict[int, np.ndarray] = {}
        if entry.stopped:  # before this job was listed
            raise Stopped
        for event in events(job):
            if isinstance(event, Preview):
                if event.i < SHOWN:
                    entry.previews = entry.previews | {int(indices[event.i]): preview_png(event)}
            else:
                pictures[event.i] = event.picture
        entry.previews = {}
        return np.stack([pictures[i] for i in range(len(indices))])
