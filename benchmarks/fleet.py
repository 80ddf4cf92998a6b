"""How long a fleet of workers takes to draw a set of shards into an object store, and what stops it from being faster.

A simulation: workers start, take the next shard, draw it, put it into the store, and may fail at any moment, which
loses the shard in their hands. The store carries so many bytes and so many requests per second for all of them. It
knows no engines: rates are measured elsewhere, and prices are the user's.
"""

import heapq
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from cfgdiff.export.markdown import table

MILLION = 1_000_000


@dataclass(frozen=True)
class Fleet:
    """What is simulated. Sizes are in bytes, times in seconds.

    Attributes:
        rate: pictures that a worker draws per second, encoded and packed.
        start: from the start of a worker to its first picture.
        failures: of each worker per hour of its work, at random (exponential).
        replaced: from a failure to the start of the worker in its place.
        requests, latency: that a shard takes, one after the other, each of this latency.
        bandwidth: of a worker into the store, bytes per second.
        store_bandwidth, store_requests: of the store per second, for all workers together.
    """

    workers: int
    pictures: int
    shard_size: int
    rate: float
    picture_bytes: float
    start: float
    failures: float
    replaced: float
    requests: int
    latency: float
    bandwidth: float
    store_bandwidth: float
    store_requests: float

    @property
    def shards(self) -> int:
        """In the set."""
        return math.ceil(self.pictures / self.shard_size)

    @property
    def drawing(self) -> float:
        """Seconds of work on a shard until it is put."""
        return self.shard_size / self.rate

    @property
    def putting(self) -> float:
        """Seconds in which a shard is put into a store with nothing else to do."""
        return self.requests * self.latency + self.shard_size * self.picture_bytes / self.bandwidth

    def walls(self) -> dict[str, float]:
        """The number of workers from which more of them do not help, by what stops them."""
        turn = self.drawing + self.putting
        return {
            "shards": self.shards,
            "store, bytes": self.store_bandwidth * turn / (self.shard_size * self.picture_bytes),
            "store, requests": self.store_requests * turn / self.requests,
        }


@dataclass(frozen=True)
class Outcome:
    """Of one simulated run: seconds until all shards were there, seconds of work of all workers, how many of these
    failures lost, and how often."""

    seconds: float
    work: float
    lost: float
    failures: int


class _Store:
    """What all workers share: bytes and requests are served in the order in which they come."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._bytes_until, self._requests_until = fleet, 0.0, 0.0

    def put(self, now: float) -> float:
        """When a shard that comes now is there."""
        fleet = self._fleet
        size = fleet.shard_size * fleet.picture_bytes
        self._bytes_until = max(self._bytes_until, now) + size / fleet.store_bandwidth
        self._requests_until = max(self._requests_until, now) + fleet.requests / fleet.store_requests
        return max(now + fleet.putting, self._bytes_until, self._requests_until)


def simulate(fleet: Fleet, rng: np.random.Generator) -> Outcome:
    """One run: a worker that is free takes the next shard, and one that failed brings its shard back."""
    left, idle, store, order = fleet.shards, 0, _Store(fleet), itertools.count()
    f, work, lost, failures, end = fleet.failures / 3600, 0.0, 0.0, 0, 0.0
    events = [(fleet.start, next(order), "free", 0.0, 0.0) for _ in range(fleet.workers)]
    work += fleet.start * fleet.workers

    def add(time: float, what: str, began: float = 0.0, fails: float = math.inf) -> None:
        heapq.heappush(events, (time, next(order), what, began, fails))

    while events:
        now, _, what, began, fails = heapq.heappop(events)
        if what == "free" and not left:
            idle += 1  # until another worker fails
        elif what == "free":
            left -= 1
            fails = now + (rng.exponential(1 / f) if f else math.inf)
            add(min(now + fleet.drawing, fails), "drawn", now, fails)
        elif what == "drawn" and now < fails:
            add(min(store.put(now), fails), "put", began, fails)
        elif now < fails:
            work, end = work + now - began, max(end, now)
            add(now, "free")
        else:
            failures, lost, work, left = failures + 1, lost + now - began, work + now - began + fleet.start, left + 1
            add(now + fleet.replaced + fleet.start, "free")
            if idle:
                idle -= 1
                add(now, "free")
    return Outcome(end, work, lost, failures)


@dataclass(frozen=True)
class Prices:
    """In any currency: of an hour of a worker, of 1,000 requests, and of a gigabyte kept for a month."""

    hour: float
    requests: float
    month: float


HEAD = ("workers", "time", "pictures/s", "of the workers' rate", "MB/s", "requests/s", "worker hours", "lost",
        "price of a million")  # fmt: skip


def fleet_report(fleet: Fleet, workers: tuple[int, ...], runs: int, prices: Prices, seed: int = 0) -> str:
    """A table, a row for each number of workers: means over `runs` simulations; and the walls, as Markdown."""
    rows = [_row(replace(fleet, workers=count), runs, prices, seed) for count in workers]
    walls = sorted(fleet.walls().items(), key=lambda wall: wall[1])
    named = ", then ".join(f"{name} at {count:,.0f} workers" for name, count in walls)
    shard = f"a shard of {fleet.shard_size:,} takes {_duration(fleet.drawing)}, and {_duration(fleet.putting)} to put"
    size = fleet.pictures * fleet.picture_bytes / 1e9
    kept = f"{size:,.1f} GB, {size * prices.month:,.2f} a month"
    lines = [f"{fleet.pictures:,} pictures in {fleet.shards:,} shards: {shard}; {kept}.", f"Walls: {named}."]
    return "\n".join([table(HEAD, rows), "", *lines])


def _row(fleet: Fleet, runs: int, prices: Prices, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, fleet.workers])
    outcomes = [simulate(fleet, rng) for _ in range(runs)]
    seconds, work, lost = (float(np.mean([getattr(o, name) for o in outcomes])) for name in ("seconds", "work", "lost"))
    rate, asked = fleet.pictures / seconds, fleet.shards * fleet.requests
    cost = work / 3600 * prices.hour + asked / 1000 * prices.requests
    return [
        f"{fleet.workers:,}", _duration(seconds), f"{rate:,.0f}", f"{rate / fleet.workers / fleet.rate:.0%}",
        f"{rate * fleet.picture_bytes / 1e6:,.1f}", f"{asked / seconds:,.2f}", f"{work / 3600:,.1f}",
        f"{lost / work:.2%}", f"{cost / fleet.pictures * MILLION:.3f}",
    ]  # fmt: skip


def _duration(seconds: float) -> str:
    """In the unit that reads best."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
