"""Draws the pictures of many plans together, a step of each at a time. It knows no HTTP.

An engine has a thread that calls it and one that prepares its calls. In each turn that one takes one step of as many
pictures as the best call holds: of every job in turn, so that a job of a thousand pictures does not hold up a job of
one. A picture joins at any turn, and pictures at other steps, of other samplers, classes and guidance share its calls,
because every row has its own t, class and w. Each is that of `sample`, as `drawing` draws both: to the last bit where
the engine's rows do not depend on the others (OpenVINO, TensorRT), else within 1 grey level (ONNX Runtime).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np

from ..bundle import Model
from ..engine import Engine
from ..errors import BadInput
from ..plan import Plan
from .batches import Drawing, Lane, call_figures
from .events import Closed, Ended, Event, Failed, Full, Job, Picture, Preview, line_of
from .turns import Turns

__all__ = ["Closed", "Ended", "Event", "Failed", "Full", "Job", "Picture", "Preview", "Scheduler"]

log = logging.getLogger("cfgdiff.server")


class Scheduler:
    """A queue of jobs in front of one engine or several, one thread each. Its methods may be called from any thread.

    The engines are its own: it closes them. Several must have the same name and precision, as pictures would differ.
    """

    def __init__(
        self, bundle: Model, engines: Engine | Sequence[Engine], rows: int | None = None, most_waiting: int = 4096,
        reopen: Callable[[Engine], Engine] | None = None,
    ) -> None:  # fmt: skip
        """Measure the engines and call them in the shapes to come, where `rows` is not given; start their threads.

        Args:
            rows: of the network in a call, where a guided picture has two; None: what each engine computes fastest.
            most_waiting: pictures that are not finished, at most.
            reopen: opens an engine in the place of one that failed, which is closed by then. None: it is called again.

        Raises:
            BadInput: naming the parameter.
            Failure: an engine fails.
        """
        every = list(engines) if isinstance(engines, Sequence) else [engines]
        if not every or len({(engine.name, engine.precision) for engine in every}) > 1:
            listed = ", ".join(f"{engine.name} {engine.precision}" for engine in every) or "none"
            raise BadInput(f"engines: expected engines of one kind, as others draw other pictures, found {listed}")
        self.bundle, self.most_waiting, self._reopen = bundle, most_waiting, reopen
        self._state, self._closing = threading.Condition(), False  # it guards all that follows, and every job
        self._jobs, self._turns = dict[str, Job](), Turns()
        self._unfinished, self._drawn = 0, 0  # pictures
        self._ends = dict.fromkeys(("finished", "cancelled", "engine", "deadline", "closed"), 0)
        self._lanes = [Lane(bundle, engine, rows, self._state) for engine in every]
        self._threads = [threading.Thread(target=self._serve, args=(lane,), daemon=True) for lane in self._lanes]
        for thread in self._threads:
            thread.start()

    def submit(
        self, plan: Plan, priority: int = 0, deadline: float | None = None, watch: bool = False,
        on_event: Callable[[Event], object] | None = None,
    ) -> Job:  # fmt: skip
        """Queue the pictures of a plan.

        Args:
            priority: jobs of a lower one wait while a higher one has pictures for a call.
            deadline: of `time.monotonic`; a job that is not finished by then fails at the next turn.
            watch: give a `Preview` after every evaluation.
            on_event: see `Job`.

        Raises:
            BadInput: a plan of another bundle, or of more pictures than may ever wait.
            Full: too many pictures wait.
            Closed: after `close`.
        """
        n = len(plan)
        if plan.bundle is not self.bundle:
            raise BadInput(f"plan: expected one for {self.bundle.name} as loaded here, found {plan.bundle.name}")
        if n > self.most_waiting:
            raise BadInput(f"classes: expected at most {self.most_waiting} pictures, found {n}; submit them in parts")
        expires = math.inf if deadline is None else deadline
        with self._state:
            if self._closing:
                raise Closed("the server is closing; it takes no pictures any more")
            if (excess := self._unfinished + n - self.most_waiting) > 0:
                raise Full(f"{self._unfinished} pictures wait, {self.most_waiting} may", self._seconds_for(excess))
            job = Job(plan, priority, expires, watch, on_event, self._cancel)
            self._jobs[job.id], self._unfinished = job, self._unfinished + n
            self._turns.offer(job)
            self._state.notify_all()
        return job

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more jobs, finish those that wait (`drain`, for at most `timeout` seconds), then close the engines.
        What is not finished by then fails."""
        with self._state:
            self._closing, until = True, None if timeout is None else time.monotonic() + timeout
            self._state.notify_all()
            if drain:
                self._state.wait_for(lambda: not self._jobs, None if until is None else until - time.monotonic())
            for job in list(self._jobs.values()):
                self._end(job, Failed("the server is closing; the pictures were not finished", "closed"))
        for thread in self._threads:
            thread.join()
        for lane in self._lanes:
            lane.thread.shutdown()
            lane.engine.close()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close(drain=kind is None)

    def stats(self) -> dict[str, float]:
        """Figures by name, those in _total only grow; see `call_figures` for what the calls took."""
        with self._state:
            begun = sum(job.next - job.done for job in self._jobs.values())
            figures: dict[str, float] = {
                "jobs": len(self._jobs), "pictures_waiting": self._unfinished - begun, "pictures_begun": begun,
                "pictures_total": self._drawn,
            }  # fmt: skip
            figures |= {f"jobs_{how}_total": n for how, n in self._ends.items()}
            return figures | call_figures(self._lanes)

    def _serve(self, lane: Lane) -> None:
        """The thread of an engine."""
        with np.errstate(over="ignore", invalid="ignore"):  # `finite` names what is not
            while self._turn(lane):
                pass

    def _turn(self, lane: Lane) -> bool:
        """One step of the pictures whose turn it is; False at the end."""
        batch = self._gather(lane)
        for drawing, answer in self._answers(lane, batch) if batch else ():
            self._advance(drawing, answer)
        self._put_back(batch)
        return bool(batch)

    def _gather(self, lane: Lane) -> list[Drawing]:
        """The pictures of the next call, each with its rows; none at the end. Kinds are those of `Lane.mixes`."""
        self._expire()
        batch, kind, b, g = list[Drawing](), None, 0, 0
        while (not batch or lane.fits(b + 1, g + bool(kind))) and (drawing := self._pick(lane, kind, wait=not batch)):
            if drawing.rows is None and not self._advance(drawing, None):
                continue
            assert drawing.rows is not None
            if kind not in (None, drawing.guided):
                self._put_back([drawing], first=True)  # it was begun for this call
                continue
            b, g = b + len(drawing.rows.sample), g + len(drawing.rows.guidance)
            if batch and not lane.fits(b, g):
                self._put_back([drawing], first=True)
                break
            batch.append(drawing)
            kind = None if lane.mixes else drawing.guided
        with self._state:
            self._turns.restore()
            self._state.notify_all()
        return batch

    def _pick(self, lane: Lane, kind: bool | None, wait: bool) -> Drawing | None:
        """Pictures of the job whose turn it is among those of the highest priority, of a kind: begun ones, if any.
        None where there are none, or, after waiting for some, at the end."""
        with self._state:
            while not (job := self._turns.take(kind)):
                if not wait or (self._closing and not self._jobs):
                    return None
                self._state.wait()
            drawing = job.begun(kind)
            if drawing is None:
                drawing = Drawing(job, lane.together, lane.engine, self._tell)
            job.owes = drawing.n - 1
            self._turns.offer(job)
            return drawing

    def _answers(self, lane: Lane, batch: list[Drawing]) -> list[tuple[Drawing, np.ndarray]]:
        """The pictures with their answers. Where the call fails, each job has one of its own: those at fault fail."""
        try:
            return self._called(lane, batch)
        except Exception as error:  # engines raise many kinds
            log.warning("%s: a call of %d pictures failed: %s", lane.engine.name, len(batch), line_of(error))
        if self._reopen is not None:
            lane.open_again(self._reopen)
        by_job, answers = dict[str, list[Drawing]](), list[tuple[Drawing, np.ndarray]]()
        for drawing in batch:
            by_job.setdefault(drawing.job.id, []).append(drawing)
        for drawings in by_job.values():
            try:
                answers += self._called(lane, drawings)
            except Exception as error:
                self._end(drawings[0].job, Failed(line_of(error), "engine"))
        return answers

    def _called(self, lane: Lane, batch: list[Drawing]) -> list[tuple[Drawing, np.ndarray]]:
        """The pictures with their answers. While the engine computes, those of the next call are begun, as far as they
        can be foreseen: their noise takes a while, in which the engine would wait."""
        with self._state:
            jobs = self._turns.first(len(batch))
        call = lane.thread.submit(lane.call, batch)
        for i in range(len(batch) if jobs else 0):
            if call.done():
                break
            self._begin(jobs[i % len(jobs)], i // len(jobs), lane)
        return call.result()

    def _begin(self, job: Job, turn: int, lane: Lane) -> None:
        """Begin a picture of a job, unless it has others for that turn of its next ones."""
        with self._state:
            if job.ended or job.next == job.n or len(job.drawings) > turn:
                return
            drawing = Drawing(job, lane.together, lane.engine, self._tell)
            if not job.offers:
                self._turns.remove(job)  # until the picture is begun: another engine would look for one
        if self._advance(drawing, None):
            with self._state:
                if not job.ended:
                    job.drawings.append(drawing)
                    self._turns.offer(job)
                    self._state.notify_all()

    def _advance(self, drawing: Drawing, answer: np.ndarray | None) -> bool:
        """Whether a picture came to its next call, or to its end. Where it fails, so does its job, and no other."""
        try:
            drawing.advance(answer)
        except Exception as error:  # a prediction that is not finite, too little memory
            self._end(drawing.job, Failed(line_of(error), "engine"))
            return False
        return True

    def _put_back(self, batch: list[Drawing], first: bool = False) -> None:
        """Give the finished pictures to their jobs, and the others their places: a job's furthest remains its first.
        The jobs have their turns last, or `first`."""
        with self._state:
            for drawing in reversed(batch):
                if drawing.pixels is None and not drawing.job.ended:
                    drawing.job.drawings.appendleft(drawing)
            for drawing in batch:
                job = drawing.job
                if drawing.pixels is not None and not job.ended:
                    job.done += drawing.n
                    self._unfinished, self._drawn = self._unfinished - drawing.n, self._drawn + drawing.n
                    for i, picture in enumerate(drawing.pixels, start=drawing.first):
                        self._tell(job, Picture(i, picture))
                    if job.done == job.n:
                        self._end(job, Ended())
                if first:
                    self._turns.remove(job)
                    job.owes = 0
                self._turns.offer(job, first)
            self._state.notify_all()

    def _tell(self, job: Job, event: Event) -> None:
        """Give a job an event, under the lock, so that the last is the last. A listener that fails ends its job."""
        with self._state:
            if job.ended and not isinstance(event, Ended | Failed):
                return
            try:
                job.give(event)
            except Exception as error:
                log.warning("job %s: its listener failed: %s", job.id, line_of(error))
                self._cancel(job)

    def _end(self, job: Job, event: Ended | Failed) -> None:
        with self._state:
            if job.ended:
                return
            job.ended = True
            self._turns.remove(job)
            job.drawings.clear()
            self._unfinished -= job.n - job.done
            del self._jobs[job.id]
            how = event.reason if isinstance(event, Failed) else "cancelled" if event.cancelled else "finished"
            self._ends[how] += 1
            self._tell(job, event)
            self._state.notify_all()

    def _cancel(self, job: Job) -> None:
        self._end(job, Ended(cancelled=True))

    def _expire(self) -> None:
        with self._state:
            now = time.monotonic()
            for job in [job for job in self._jobs.values() if job.expires <= now]:
                done = f"{job.done} of {job.n} pictures were finished by then"
                self._end(job, Failed(f"deadline: {done}; ask for fewer, or for fewer steps", "deadline"))

    def _seconds_for(self, pictures: int) -> int:
        """An estimate of the time until so many of those that wait are finished, 1 or more."""
        steps = sum((job.n - job.done) * job.plan.steps for job in self._jobs.values()) / max(1, self._unfinished)
        pace = call_figures(self._lanes)["evaluations_per_second"]
        return max(1, math.ceil(pictures * steps / pace)) if pace else 1
