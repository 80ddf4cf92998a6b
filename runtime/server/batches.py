"""Calls of an engine that the steps of many pictures share. It knows no queue and no threads."""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from ..bundle import Model
from ..engine import Engine
from ..generate import drawing
from ..samplers import Steps
from .events import Job, Preview, line_of

log = logging.getLogger("cfgdiff.server")

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows of the network in the calls that are measured
LONGEST, TURNS = 0.1, 3  # seconds of a call, after which no larger ones are measured; of all sizes
ENOUGH = 0.97  # of the most rows a second: a smaller call that computes as many ends sooner
RECENT = 256  # calls
SHARE = 16  # of a call, for the pictures of a job that take their steps together


class Rows(NamedTuple):
    """The arguments of `Engine.predict`, for one picture or for many."""

    sample: np.ndarray
    timestep: np.ndarray
    class_label: np.ndarray
    guidance: np.ndarray


def joined(requests: Sequence[Rows]) -> Rows:
    """The rows of all requests: first the guided ones of each, as the graph guides the first G, then the others."""
    guided = [len(rows.guidance) for rows in requests]
    return Rows(
        *(
            np.concatenate(
                [
                    *(array[:g] for array, g in zip(arrays, guided, strict=True)),
                    *(array[g:] for array, g in zip(arrays, guided, strict=True)),
                ]
            )
            for arrays in zip(*requests, strict=True)
        )
    )


def divided(answer: np.ndarray, requests: Sequence[Rows]) -> list[np.ndarray]:
    """The answers of each request, from that of `joined`: its inverse."""
    answers, first, rest = [], 0, sum(len(rows.guidance) for rows in requests)
    for rows in requests:
        g, plain = len(rows.guidance), len(rows.sample) - len(rows.guidance)
        parts = answer[first : first + g], answer[rest : rest + plain]
        answers.append(np.concatenate(parts) if g and plain else parts[0] if g else parts[1])
        first, rest = first + g, rest + plain
    return answers


class Drawing:
    """Pictures of a job from number `first` on, step by step: the rows that they need next, or `pixels` at their end.

    `pixels` are (n, H, W, C) uint8. NumPy takes a step of several pictures in little more time than one of a single.
    """

    def __init__(self, job: Job, n: int, engine: Engine, tell: Callable[[Job, Preview], object]) -> None:
        """Of the next n pictures of a job, or fewer where it has no more."""
        self.job, self.first, self.n = job, job.next, min(n, job.n - job.next)
        job.next += self.n
        self.rows: Rows | None = None
        self.pixels: np.ndarray | None = None
        self._tell, self._step = tell, 0
        self._steps = self._draw(engine)

    def _draw(self, engine: Engine) -> Steps:
        plan = self.job.plan.take(slice(self.first, self.first + self.n))
        return (yield from drawing(engine, plan, self._watch if self.job.watch else None))

    @property
    def guided(self) -> bool:
        """Whether a row that it needs next is."""
        return self.rows is not None and len(self.rows.guidance) > 0

    def advance(self, answer: np.ndarray | None) -> None:
        """To its next call, with the engine's answer to the one before; with None to its first."""
        try:
            self.rows = Rows(*self._steps.send(answer))  # type: ignore[arg-type]  # a generator begins with None
        except StopIteration as end:
            self.rows, self.pixels = None, end.value

    def _watch(self, x0: np.ndarray) -> None:
        self._step += 1
        for i, picture in enumerate(x0, start=self.first):
            self._tell(self.job, Preview(i, picture, self._step))


class Call(NamedTuple):
    """What a call took: `rows` of the network, which are `fill` times those of the best size, for so many pictures."""

    seconds: float
    rows: int
    pictures: int
    fill: float


class Lane:
    """An engine, and what its calls took.

    Attributes:
        rows: of the network in a call of its best size.
        together: the most pictures of a job that take their steps together: so few that calls are filled all the same.
        mixes: whether guided and other pictures share its calls.
        thread: that calls the engine.
        calls, computed, seconds: how many calls there were, their rows, and their time, in all.
        recent: the last calls.
    """

    def __init__(self, bundle: Model, engine: Engine, rows: int | None, lock: AbstractContextManager[Any]) -> None:
        self.bundle, self.engine, self.rows = bundle, engine, rows or best_rows(bundle, engine)
        self.together = max(1, self.rows // SHARE)
        self.mixes = rows is not None or mixes(bundle, engine, self.rows)
        if rows is None:
            warm_up(bundle, engine, self.rows, self.mixes)
        self.calls, self.computed, self.seconds = 0, 0, 0.0
        self.recent: deque[Call] = deque(maxlen=RECENT)
        self.thread = ThreadPoolExecutor(1, "cfgdiff-engine")
        self._lock = lock  # for the figures

    def fits(self, b: int, g: int) -> bool:
        """Whether b rows, of which g are guided, are no more than a call's best size."""
        return b <= self.engine.max_batch and self.bundle.rows(b, g) <= self.rows

    def call(self, batch: Sequence[Drawing]) -> list[tuple[Drawing, np.ndarray]]:
        """Each picture with the engine's answer to its rows, from one call."""
        requests = [drawing.rows for drawing in batch if drawing.rows]
        started, rows = time.monotonic(), joined(requests)
        if self.bundle.guidance_input:  # a row costs the same with any w, and engines divide rows of a kind best
            ones = np.ones(len(rows.sample) - len(rows.guidance), np.float32)
            rows = rows._replace(guidance=np.concatenate([rows.guidance, ones]))
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` names what is not
            answers = divided(self.engine.predict(*rows), requests)
        seconds, n = time.monotonic() - started, self.bundle.rows(len(rows.sample), len(rows.guidance))
        with self._lock:
            self.calls, self.computed, self.seconds = self.calls + 1, self.computed + n, self.seconds + seconds
            self.recent.append(Call(seconds, n, sum(drawing.n for drawing in batch), n / self.rows))
        return list(zip(batch, answers, strict=True))

    def open_again(self, reopen: Callable[[Engine], Engine]) -> None:
        """Put another engine in the place of this one. Where that fails, its calls do, until another try succeeds."""
        try:
            self.engine.close()
            self.engine = reopen(self.engine)
        except Exception as error:  # engines raise many kinds
            log.error("%s: cannot be opened again: %s", self.engine.name, line_of(error))


def call_figures(lanes: Sequence[Lane]) -> dict[str, float]:
    """What the calls of some engines took: in all, and in the last `RECENT` of each.

    Of the last: `batch_fill`, their rows as shares of the best size; `rows_per_second` of the network and
    `evaluations_per_second` of pictures, of all engines together while they run; the seconds of a step, which are those
    of a call, `step_seconds` (median) and `step_seconds_p95`.
    """
    totals = (
        ("best_rows", "rows"),
        ("calls_total", "calls"),
        ("rows_total", "computed"),
        ("busy_seconds_total", "seconds"),
    )
    calls = [call for lane in lanes for call in lane.recent]
    seconds = sorted(call.seconds for call in calls) or [0.0]
    pace = len(lanes) / max(1e-9, sum(seconds))
    return {name: sum(getattr(lane, each) for lane in lanes) for name, each in totals} | {
        "batch_fill": statistics.fmean(call.fill for call in calls) if calls else 0.0,
        "rows_per_second": pace * sum(call.rows for call in calls),
        "evaluations_per_second": pace * sum(call.pictures for call in calls),
        "step_seconds": statistics.median(seconds),
        "step_seconds_p95": seconds[math.ceil(0.95 * len(seconds)) - 1],
    }


def best_rows(bundle: Model, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> int:
    """How many rows of the network the fewest have that, in one call, are computed about as fast as by any other.

    Measured by calls of guided pictures: the shortest of a few, as others may use the machine, and all sizes in turns,
    as its speed may drift. An engine's first call of a size may take long, and does not count.
    """

    def seconds(size: int) -> float:
        n = size if bundle.guidance_input else max(1, size // 2)
        inputs = example(bundle, n, n if bundle.rows(n, n) == size else 0)
        before = clock()
        engine.predict(*inputs)
        return clock() - before

    least = dict[int, float]()
    for size in SIZES:
        if least and size > engine.max_batch * (1 if bundle.guidance_input else 2):
            break
        seconds(size)
        least[size] = seconds(size)
        if least[size] > LONGEST:
            break
    for _ in range(TURNS):
        least = {size: min(shortest, seconds(size)) for size, shortest in least.items()}
    rates = {size: size / max(1e-9, shortest) for size, shortest in least.items()}
    return next(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def mixes(bundle: Model, engine: Engine, rows: int, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Whether an engine computes guided and other pictures in one call as fast as in calls of a kind each.

    OpenVINO, for one, does not, where their numbers are odd. Measured with `rows` of the network.
    """
    if bundle.guidance_input or rows < 3:
        return True  # all rows are of a kind, or in calls of their own
    g = (rows // 5) | 1
    shapes = (min(rows - g, engine.max_batch), g), (rows // 2, rows // 2)
    least = dict.fromkeys(shapes, math.inf)
    for _ in range(1 + TURNS):
        for shape in shapes:
            before = clock()
            engine.predict(*example(bundle, *shape))
            least[shape] = min(least[shape], clock() - before)
    mixed, guided = (seconds / bundle.rows(*shape) for shape, seconds in least.items())
    return ENOUGH * mixed <= guided


def warm_up(bundle: Model, engine: Engine, rows: int, mixed: bool) -> None:
    """Call an engine once in the shapes that its calls will have: all rows guided, none, or, if `mixed`, half of them.

    Engines compile or record a shape at its first use, which later would hold up everybody.
    """
    for n in (size for size in SIZES if size <= min(rows, engine.max_batch)):
        for g in {n} if bundle.guidance_input else sorted({0, n, *([n // 2] if mixed else [])}):
            if bundle.rows(n, g) <= rows:
                engine.predict(*example(bundle, n, g))


def example(bundle: Model, b: int, g: int) -> Rows:
    """Some input of b rows, of which g are guided."""
    return Rows(
        np.zeros((b, *bundle.image_shape), np.float32), np.full(b, bundle.schedule.T / 2, np.float32),
        np.arange(b) % len(bundle.class_names), np.full(g, 1.5, np.float32),
    )  # fmt: skip
