"""From a plan to PNG files: waits for a job, and cancels it when the client hangs up or time is over."""

import asyncio
import base64
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import numpy as np
from starlette.types import Receive

from ..bundle import Bundle
from ..generate import to_uint8
from ..images import encoded
from ..notes import note_of
from ..plan import Plan
from .limits import Limits
from .refusals import cancelled, closing, failed, full, late
from .scheduler import Closed, Ended, Event, Failed, Full, Job, Picture, Preview, Scheduler

T = TypeVar("T")


class Drawn(NamedTuple):
    """Picture i as a PNG with its note inside, or a preview of it, which has none."""

    i: int
    png: bytes
    note: dict[str, Any] | None

    @property
    def base64(self) -> str:
        """The PNG as text."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Served:
    """A model and the scheduler that draws with it. `made_by` is what notes say of model and engine."""

    bundle: Bundle
    scheduler: Scheduler
    made_by: dict[str, str]

    def submit(self, plan: Plan, priority: int = 0, seconds: float | None = None, watch: bool = False,
               on_event: Callable[[Event], object] | None = None) -> Job:  # fmt: skip
        """See `Scheduler.submit`. Raises `Refused` where the queue is full or closed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            return self.scheduler.submit(plan, priority=priority, deadline=deadline, watch=watch, on_event=on_event)
        except Full as error:
            raise full(error.retry_after) from None
        except Closed:
            raise closing() from None

    def note(self, plan: Plan, i: int) -> dict[str, Any]:
        """The note of picture i of a plan."""
        return note_of(plan, i) | self.made_by

    def drawn(self, plan: Plan, event: Picture | Preview) -> Drawn:
        """A picture or a preview as a PNG."""
        if isinstance(event, Preview):
            return Drawn(event.i, preview_png(event), None)
        note = self.note(plan, event.i)
        return Drawn(event.i, encoded(event.picture, note=note), note)


def preview_png(event: Preview) -> bytes:
    """The clean picture as it looks by then."""
    return encoded(to_uint8(np.asarray(event.x0)[None])[0])


def events(job: Job) -> Iterator[Picture | Preview]:
    """The pictures and previews of a job. Raises `Refused` where it fails or is cancelled."""
    left = job.n
    for event in job:
        if isinstance(event, Failed):
            raise failed(event)
        if isinstance(event, Picture | Preview):
            left -= isinstance(event, Picture)
            yield event
    if left:
        raise cancelled()


class Gathered:
    """The events of a job, as `on_event` of it, for a coroutine that needs all of them: no thread waits meanwhile."""

    def __init__(self) -> None:
        self._events, self._ended, self._loop = list[Event](), asyncio.Event(), asyncio.get_running_loop()

    def __call__(self, event: Event) -> None:
        """From any thread."""
        self._events.append(event)
        if isinstance(event, Ended | Failed):
            self._loop.call_soon_threadsafe(self._ended.set)

    async def pictures(self) -> list[Picture]:
        """When the job has ended. Raises `Refused` where it failed or was cancelled."""
        await self._ended.wait()
        *events, end = self._events
        if isinstance(end, Failed):
            raise failed(end)
        if isinstance(end, Ended) and end.cancelled:
            raise cancelled()
        return [event for event in events if isinstance(event, Picture)]


def thinned(given: Iterator[Picture | Preview], steps: int, most: int) -> Iterator[Picture | Preview]:
    """Of the previews of each picture, at most so many, evenly over its steps; without that of the last step."""
    for event in given:
        if isinstance(event, Preview):
            share, before = (step * (most + 1) // steps for step in (event.step, event.step - 1))
            if event.step >= steps or share == before:
                continue
        yield event


@contextmanager
def watched(receive: Receive, job: Job) -> Iterator[None]:
    """Cancels a job when its client hangs up, and at the end of the block whatever is left of it."""

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.ensure_future(hang_up())
    try:
        yield
    finally:
        watcher.cancel()
        job.cancel()


@contextmanager
def in_time(limits: Limits) -> Iterator[None]:
    """Raises `Refused` where the block takes longer than one request may."""
    try:
        with anyio.fail_after(limits.seconds):
            yield
    except TimeoutError:
        raise late() from None


async def in_thread(work: Callable[[], T], threads: anyio.CapacityLimiter) -> T:
    """What `work` returns. A caller that is cancelled does not wait for it."""
    return await anyio.to_thread.run_sync(work, limiter=threads, abandon_on_cancel=True)


async def one_by_one(given: Iterator[T], threads: anyio.CapacityLimiter) -> AsyncIterator[T]:
    """The entries of an iterator that blocks. The next one is asked for only when the client has taken the last."""
    while True:
        entry: T | None = await in_thread(lambda: next(given, None), threads)
        if entry is None:
            return
        yield entry


class Kept:
    """Pictures behind URLs that nobody can guess, for a while: the oldest go first where there are too many."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._bytes, self._lock = limits, 0, threading.Lock()
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def put(self, name: str, png: bytes) -> None:
        """Keep a picture."""
        with self._lock:
            self._kept[name] = (time.monotonic() + self._limits.kept_seconds, png)
            self._bytes += len(png)
            while self._bytes > self._limits.kept_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1][1])

    def get(self, name: str) -> bytes | None:
        """The picture; None where there is none, or no more."""
        with self._lock:
            until, png = self._kept.get(name, (0.0, b""))
        return png if time.monotonic() < until else None
