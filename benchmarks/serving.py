"""Requests through the scheduler, against whole requests one after the other, on the same engine in the same run.

Two figures, as a server has two users: pictures a second where many ask for one picture each, beside one request for
them all; and the seconds that somebody waits for a single picture while others ask for many.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np

from cfgdiff.export.markdown import table
from cfgdiff.runtime import Engine, Plan, Request, resolve, sample
from cfgdiff.runtime.bundle import Model
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.server.scheduler import Failed, Picture, Scheduler

from .timing import Case, interleaved

SIZES = (1, 1, 1, 1, 2, 4, 16, 64)  # pictures of a request in the mixed load, at random
EACH = 4  # requests of a client
Draw = Callable[[Plan], object]


class Lent(WrappedEngine):
    """An engine that is used on after the scheduler closes it."""

    def close(self) -> None:
        """Leave it open."""


def single_plans(bundle: Model, n: int, steps: int | None) -> list[Plan]:
    """One picture each, of all classes in turn, with its own seed."""
    return [resolve(bundle, Request([i % len(bundle.class_names)], steps, seed=[i])) for i in range(n)]


def pictures(scheduler: Scheduler, plans: list[Plan]) -> list[np.ndarray]:
    """Those of each plan, (N, H, W, C) uint8, submitted together. Raises `Failure` where a job fails."""
    drawn = []
    for job in [scheduler.submit(plan) for plan in plans]:
        found = dict[int, np.ndarray]()
        for event in job:
            if isinstance(event, Failed):
                raise Failure(event.error)
            if isinstance(event, Picture):
                found[event.i] = event.picture
        drawn.append(np.stack([found[i] for i in range(job.n)]))
    return drawn


def throughput(engine: Engine, scheduler: Scheduler, plans: list[Plan], batch: int, rounds: int) -> dict[str, Case]:
    """Single-picture plans, drawn in three ways. Raises `Failure` where their pictures differ by more than a level.

    Args:
        batch: pictures at a time of the one request for all of them.
    """
    request = plans[0].request
    classes, seeds = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("labels", "seeds"))
    whole = resolve(scheduler.bundle, replace(request, classes=classes, seed=seeds, batch=batch))
    drawn: dict[str, np.ndarray] = {}

    def one_request() -> None:
        drawn["one"] = np.concatenate([part for _, part in sample(engine, whole)])

    def one_by_one() -> None:
        drawn["each"] = np.concatenate([part for plan in plans for _, part in sample(engine, plan)])

    def scheduled() -> None:
        drawn["scheduled"] = np.concatenate(pictures(scheduler, plans))

    cases = {"one after the other": one_by_one, "scheduler": scheduled, "one request for all": one_request}
    timed = interleaved(cases, rounds, len(plans))
    first, *others = drawn.values()
    apart = max(int(np.abs(first.astype(int) - other).max()) for other in others)
    if apart > 1:
        raise Failure(f"the scheduler's pictures differ from those of single requests by {apart} grey levels")
    return timed


def mixed_load(bundle: Model, clients: int, requests: int, seed: int) -> list[list[Plan]]:
    """The requests of each client, one after the other: of `SIZES` pictures, with other steps, samplers and w."""
    rng = random.Random(seed)

    def plan() -> Plan:
        request = Request(
            [rng.randrange(len(bundle.class_names)) for _ in range(rng.choice(SIZES))], seed=rng.randrange(2**32)
        )
        if bundle.few_steps:
            return resolve(bundle, replace(request, steps=rng.choice(sorted(bundle.fitted))))
        return resolve(
            bundle,
            replace(request, steps=rng.randint(3, 12), sampler=rng.choice(["ddim", "dpmpp-2m", "unipc"]),
                    guidance=rng.choice([1.0, 1.5, 3.0])),
        )  # fmt: skip

    return [[plan() for _ in range(requests)] for _ in range(clients)]


def latencies(draw: Draw, load: list[list[Plan]]) -> tuple[list[float], float]:
    """How long each request for a single picture took, where all clients ask at once, and how long all did. Seconds."""

    def client(plans: list[Plan]) -> list[float]:
        single = []
        for plan in plans:
            started = time.perf_counter()
            draw(plan)
            single += [time.perf_counter() - started] * (len(plan) == 1)
        return single

    started = time.perf_counter()
    with ThreadPoolExecutor(len(load)) as pool:
        single = list(chain.from_iterable(pool.map(client, load)))
    return single, time.perf_counter() - started


def waiting(engine: Engine, scheduler: Scheduler, clients: int, rounds: int) -> str:
    """Markdown of the seconds that a single picture takes under a mixed load, in both ways."""
    lock = threading.Lock()

    def one_by_one(plan: Plan) -> None:
        with lock:
            deque(sample(engine, plan), maxlen=0)

    ways: dict[str, Draw] = {"one after the other": one_by_one, "scheduler": lambda plan: pictures(scheduler, [plan])}
    single: dict[str, list[list[float]]] = {name: [] for name in ways}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds):
        load = mixed_load(scheduler.bundle, clients, EACH, k)
        for name, draw in ways.items():
            seconds, whole = latencies(draw, load)
            single[name].append(seconds)
            speeds[name].append(sum(map(len, chain.from_iterable(load))) / whole)
    late = {name: [float(np.percentile(seconds, 95)) for seconds in of_rounds] for name, of_rounds in single.items()}
    ratios = [first / other for first, other in zip(*late.values(), strict=True)]
    rows = [
        [name, f"{np.median(speeds[name]):.1f}", f"{np.median(np.concatenate(single[name])):.3f}",
         f"{np.median(late[name]):.3f} ({min(late[name]):.3f} .. {max(late[name]):.3f})"] for name in ways
    ]  # fmt: skip
    faster = f"The 95th percentile is {np.median(ratios):.1f} times as short ({min(ratios):.1f} .. {max(ratios):.1f})."
    return f"{table(['way', 'pictures/s', 'median s', '95th percentile s'], rows)}\n\n{faster}"


def serving_report(bundle: Model, engine: Engine, requests: int, clients: int, rounds: int, steps: int | None) -> str:
    """Both comparisons as Markdown."""
    with Scheduler(bundle, Lent(engine)) as scheduler:
        rows = int(scheduler.stats()["best_rows"])
        plans = single_plans(bundle, requests, steps)
        batch = max(1, rows if bundle.guidance_input else rows // 2)
        timed = throughput(engine, scheduler, plans, batch, rounds)
        delays = waiting(engine, scheduler, clients, rounds)
    base, first = timed["one after the other"], plans[0]
    speeds = [
        [
            name,
            f"{case.pictures / case.median:.1f}",
            f"{1e3 * case.median:.1f} ({case.spread})",
            f"{case.times(base):.2f}",
        ]
        for name, case in timed.items()
    ]
    load = f"{clients} clients, each with {EACH} requests for {min(SIZES)} to {max(SIZES)} pictures"
    return "\n\n".join(
        [
            f"{engine.name} {engine.precision}; {first.course.sampler}, {first.steps} steps; {rows} rows in a call",
            f"{requests} requests for one picture each:",
            table(["way", "pictures/s", "ms (spread)", "times the first"], speeds),
            f"{load}; the seconds of those for a single one:",
            delays,
        ]
    )
