"""Engines of NumPy that note and hold up calls, and what a scheduler gives, in the form that tests compare."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cfgdiff.runtime import sample
from cfgdiff.runtime.plan import Plan
from cfgdiff.runtime.server.scheduler import Failed, Job, Picture


class Formula:
    """Answers by sums and products of float32, so a row is the same in every call; `calls` are the inputs of each."""

    name, precision, max_batch, closed = "formula", "float32", 64, False

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, ...]] = []

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        """As the graph: rows 0 .. G-1 are guided, against the null class."""
        assert len(sample) == len(timestep) == len(class_label) >= len(guidance) and not self.closed
        self.calls.append((sample, timestep, class_label, guidance))
        g, w = len(guidance), guidance.reshape(-1, 1, 1, 1)
        answer = self._network(sample, timestep, class_label)
        uncond = self._network(sample[:g], timestep[:g], np.full(g, 10))
        answer[:g] = uncond + w * (answer[:g] - uncond)
        return answer

    def _network(self, x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
        pattern = (np.arange(32) % (label[:, None, None, None] + 2) / np.float32(16)).astype(np.float32)
        turned = np.roll(x, 1, axis=-1) * np.float32(0.25) - x * np.float32(0.125)
        return turned + (pattern - np.float32(0.25)) * (t.reshape(-1, 1, 1, 1) / np.float32(1000))

    def close(self) -> None:
        self.closed = True


class Halves:
    """An engine that halves its input."""

    name, precision, max_batch = "halves", "float32", 256

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        return sample * np.float32(0.5)

    def close(self) -> None: ...


class Gated(Formula):
    """Waits in every call until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Semaphore(0)

    def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        answer = super().predict(*inputs)
        assert self._gate.acquire(timeout=20)
        return answer

    def let(self, calls: int) -> None:
        """Let so many calls go on, and wait until the next one has begun, if there is one."""
        before = len(self.calls)
        self._gate.release(calls)
        wait(lambda: len(self.calls) >= before + calls)

    def open(self) -> None:
        """Hold up nothing any more."""
        self._gate.release(1_000_000)


def wait(until: Callable[[], bool]) -> None:
    """Until it is so; 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "it did not happen in 20 s"
        time.sleep(0.001)


def alone(plan: Plan, **changed: Any) -> np.ndarray:
    """The pictures of a plan as `sample` draws them, one at a time, (N, H, W, C) uint8."""
    each = dataclasses.replace(plan, request=dataclasses.replace(plan.request, **{"batch": 1} | changed))
    return np.concatenate([part for _, part in sample(Formula(), each)])


def drawn(job: Job) -> np.ndarray:
    """All pictures of a job, each of them once."""
    found = dict[int, np.ndarray]()
    for event in job:
        assert isinstance(event, Picture) and event.i not in found, event
        found[event.i] = event.picture
    return np.stack([found[i] for i in range(job.n)])


def failure(job: Job) -> Failed:
    """The last event of a job, which failed; its error is a line."""
    *_, last = job
    assert isinstance(last, Failed) and last.error and "\n" not in last.error
    return last
