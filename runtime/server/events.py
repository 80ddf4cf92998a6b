"""What a client of the scheduler holds: a job and its events, and the errors for which none is taken."""

import queue
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import Failure
from ..plan import Plan

if TYPE_CHECKING:
    from .batches import Drawing

Reason = Literal["engine", "deadline", "closed"]


class Full(Failure):
    """Too many pictures wait. `retry_after` is an estimate of the seconds until there is room, 1 or more."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(Failure):
    """The scheduler takes no jobs any more."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Picture `i` of the plan is finished: `picture` (H, W, C) uint8."""

    i: int
    picture: np.ndarray


@dataclass(frozen=True, eq=False)
class Preview:
    """Picture `i` as it looks after `step` evaluations: `x0` (C, H, W) float32, within about -1 .. 1."""

    i: int
    x0: np.ndarray
    step: int


@dataclass(frozen=True)
class Failed:
    """The last event of a job that does not finish: `error` is one line.

    Its `reason` is "engine" (the engine or the model failed), "deadline", or "closed" (the scheduler was).
    """

    error: str
    reason: Reason


@dataclass(frozen=True)
class Ended:
    """The last event of a job whose pictures are all finished, or that was cancelled."""

    cancelled: bool = False


Event = Picture | Preview | Failed | Ended


class Job:
    """The pictures of one plan in the scheduler.

    Iterate over it, in one thread, for its events as they come: `Picture` (in any order), `Preview`, and at most one
    `Failed`, after which it ends, as after the last picture and after `cancel`. Previews are left out while as many
    events as there are pictures wait to be read. With `on_event` there is nothing to iterate over: that function gets
    the events, `Ended` too. The scheduler calls it from its threads, so it must not wait. For asyncio:

        events = asyncio.Queue()
        scheduler.submit(plan, on_event=lambda event: loop.call_soon_threadsafe(events.put_nowait, event))

    Attributes:
        id: unique.
        n: how many pictures it has.
        done: how many of them are finished.
        ended: whether its last event was given.
    """

    def __init__(
        self, plan: Plan, priority: int, expires: float, watch: bool, on_event: Callable[[Event], object] | None,
        cancel: Callable[["Job"], None],
    ) -> None:  # fmt: skip
        self.id, self.n, self.done, self.ended = uuid.uuid4().hex, len(plan), 0, False
        self.plan, self.priority, self.expires, self.watch = plan, priority, expires, watch
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._on_event, self._cancel = on_event, cancel
        # The scheduler's, under its lock.
        self.next, self.waits = 0, False  # the first picture that is not begun; whether it stands in a queue
        self.owes = 0  # turns, see `Turns`
        self.drawings: deque[Drawing] = deque()  # begun, and in no call; the furthest first

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            if isinstance(event, Ended | Failed):
                self._events.put(event)  # for whoever iterates again
            if not isinstance(event, Ended):
                yield event
            if isinstance(event, Ended | Failed):
                return

    def cancel(self) -> None:
        """End it now, unless it has ended; its pictures leave the next call."""
        self._cancel(self)

    @property
    def offers(self) -> bool:
        """Whether it has a picture for a call."""
        return not self.ended and (bool(self.drawings) or self.next < self.n)

    def may(self, guided: bool | None) -> bool:
        """For the scheduler: whether it has a picture of that kind, as `Drawing.guided`, or none that is begun."""
        return guided is None or not self.drawings or any(drawing.guided == guided for drawing in self.drawings)

    def begun(self, guided: bool | None) -> "Drawing | None":
        """For the scheduler: take out its furthest picture of that kind; None where none is begun."""
        for drawing in self.drawings:
            if guided in (None, drawing.guided):
                self.drawings.remove(drawing)
                return drawing
        return None

    def give(self, event: Event) -> None:
        """For the scheduler: the next event."""
        if self._on_event is not None:
            self._on_event(event)
        elif not isinstance(event, Preview) or self._events.qsize() < self.n:
            self._events.put(event)


def line_of(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
