"""A scheduler that draws without a network, and servers around it."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import Gated

from cfgdiff.runtime import Bundle, Plan, Request, load_bundle, resolve
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.fitted import Fitted


class StandInJob:
    """A job of `StandIn`."""

    def __init__(self, scheduler: "StandIn", plan: Plan, settings: dict[str, Any]) -> None:
        self.id, self.n, self.done, self.plan, self.settings = "job", len(plan), 0, plan, settings
        self.cancelled, self._scheduler = threading.Event(), scheduler

    def cancel(self) -> None:
        if self.done < self.n:
            self.cancelled.set()

    def __iter__(self) -> Iterator[Any]:
        from cfgdiff.runtime.server.scheduler import Failed, Picture, Preview

        if self._scheduler.fail is not None:
            yield self._scheduler.fail
            return
        if self._scheduler.fail_once:
            self._scheduler.fail_once = False
            yield Failed("this once", "engine")
            return
        for i in range(self.n):
            while self._scheduler.holds(int(self.plan.indices[i])) and not self.cancelled.wait(0.005):
                pass
            self.cancelled.wait(self._scheduler.slow)
            if self.cancelled.is_set():
                return
            if self.settings["watch"]:
                for step in range(1, self.plan.steps + 1):
                    x0 = np.full(self.plan.bundle.image_shape, step / self.plan.steps, np.float32)
                    yield Preview(i, x0, step)
            self.done += 1
            yield Picture(i, picture_of(self.plan, i))

    def tell(self, on_event: Callable[[Any], object]) -> None:
        """All events to a listener, `Ended` too."""
        from cfgdiff.runtime.server.scheduler import Ended, Failed

        event = None
        for event in self:
            on_event(event)
        if not isinstance(event, Failed):
            on_event(Ended(self.cancelled.is_set()))


def picture_of(plan: Plan, i: int) -> np.ndarray:
    """Pixels that name class, seed and number of a picture: (H, W, C) uint8."""
    _, h, w = plan.bundle.image_shape
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = plan.labels[i], plan.seeds[i] % 256, plan.indices[i] % 256
    return pixels


class StandIn:
    """A scheduler with the methods of `Scheduler`, and what a test sets.

    Attributes:
        hold, hold_from: keep all pictures back, or those from this number on; `slow`: seconds for each.
        fail, fail_once: the only event of every job; whether the next job fails.
        error: what `submit` raises.
    """

    def __init__(self) -> None:
        self.jobs: list[StandInJob] = []
        self.hold, self.hold_from, self.slow = threading.Event(), None, 0.0  # type: threading.Event, int | None, float
        self.fail, self.error, self.fail_once, self.closed = None, None, False, False  # type: Any, Any, bool, bool

    def holds(self, i: int) -> bool:
        """Whether picture i of a request waits."""
        return self.hold.is_set() or (self.hold_from is not None and i >= self.hold_from)

    def submit(self, plan: Plan, priority: int = 0, deadline: float | None = None, watch: bool = False,
               on_event: Callable[[Any], object] | None = None) -> StandInJob:  # fmt: skip
        if self.error is not None:
            raise self.error
        settings = {"priority": priority, "deadline": deadline, "watch": watch}
        job = StandInJob(self, plan, settings)
        self.jobs.append(job)
        if on_event is not None:
            threading.Thread(target=job.tell, args=(on_event,), daemon=True).start()
        return job

    def stats(self) -> dict[str, Any]:
        return {"queued": 3, "calls_total": 7, "fill": 0.5, "name": "not a number"}

    def close(self, drain: bool = True) -> None:
        self.closed = True


MADE_BY = {"model": "cifar10-turbo", "model_sha256": "0" * 64, "engine": "cpu", "precision": "float32"}


@pytest.fixture(scope="session")
def turbo() -> Bundle:
    """The packaged model of few steps."""
    return load_bundle("cifar10-turbo")


@pytest.fixture
def scheduler() -> StandIn:
    """For cifar10-turbo."""
    return StandIn()


@pytest.fixture
def served(turbo: Bundle, packaged: Bundle, scheduler: StandIn) -> list[Any]:
    """Both packaged models."""
    from cfgdiff.runtime.server.drawing import Served

    return [Served(turbo, scheduler, MADE_BY), Served(packaged, StandIn(), MADE_BY | {"model": "cifar10-small"})]  # type: ignore[arg-type]


@pytest.fixture
def client(served: list[Any]) -> Iterator[Any]:
    """A client of a server without a token and without jobs."""
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.http import make_app

    with TestClient(make_app(served), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def running(served: list[Any]) -> Iterator[Callable[..., str]]:
    """A function that starts a server on a free port, with settings of `make_app`, and gives its address."""
    import uvicorn

    from cfgdiff.runtime.server.http import make_app

    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(**settings: Any) -> str:
        config = uvicorn.Config(make_app(served, **settings), port=0, log_level="error", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield run
    for server, thread in started:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def bundle(packaged: Bundle) -> Bundle:
    """The packaged model with defaults and fitted steps of its own, which a later model does not change."""
    fitted = Fitted((999.0, 400.0, 0.0), ((0.6, 0.3, 0.0, 0.0), (0.1, 0.9, 0.2, 0.0)), 4.0, (0.1, 3.0))
    return dataclasses.replace(packaged, defaults=Defaults("dpmpp-2m", 5, 4.0, (0.1, 3.0)), fitted={2: fitted})


@pytest.fixture(scope="session")
def planned(bundle: Bundle) -> Callable[..., Plan]:
    """A function (n, settings of a request) -> plan of n pictures, of all classes in turn."""

    def plan(n: int = 1, **settings: Any) -> Plan:
        classes = settings.pop("classes", [i % 10 for i in range(n)])
        return resolve(bundle, Request(classes, **{"steps": 3} | settings))

    return plan


@pytest.fixture
def gated() -> Iterator[Gated]:
    """A gate that is open at the end, so that no thread waits for ever."""
    engine = Gated()
    yield engine
    engine.open()
