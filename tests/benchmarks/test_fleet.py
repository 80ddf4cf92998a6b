"""The simulation of a fleet agrees with closed forms where there are some."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cfgdiff.benchmarks.fleet import Fleet, Prices, fleet_report, simulate

FLEET = Fleet(
    workers=4, pictures=100_000, shard_size=1000, rate=100.0, picture_bytes=5000.0, start=30.0, failures=0.0,
    replaced=50.0, requests=2, latency=0.25, bandwidth=1e7, store_bandwidth=1e12, store_requests=1e9,
)  # fmt: skip
TURN = 10.0 + 0.5 + 0.5  # drawing, requests, bytes


def expected_seconds(fleet: Fleet) -> float:
    """The mean time in which one worker without competition for the store finishes one shard, failures included.

    With failures at a rate f, T seconds of work without one, and D until work begins anew, it is
    (1 / f + D)(e^(f T) - 1), and T for f = 0: an attempt succeeds with probability e^(-f T), and there are e^(f T) - 1
    failed ones before it in the mean.
    """
    f, time = fleet.failures / 3600, fleet.drawing + fleet.putting
    return time if f == 0 else (1 / f + fleet.replaced + fleet.start) * math.expm1(f * time)


@pytest.mark.parametrize("workers", [1, 3, 4, 99, 100, 250])
def test_without_failures_time_is_that_of_the_worker_with_most_shards(workers: int) -> None:
    outcome = simulate(replace(FLEET, workers=workers), np.random.default_rng(0))
    assert outcome.seconds == pytest.approx(30 + math.ceil(100 / workers) * TURN)
    assert outcome.work == pytest.approx(workers * 30 + 100 * TURN) and outcome.failures == outcome.lost == 0


@pytest.mark.parametrize("failures", [20.0, 300.0])  # an hour: one in 16 shards, two in three
def test_failures_cost_what_the_formula_says(failures: float) -> None:
    """One worker, of which the mean time, failures and loss are known; within four standard errors."""
    fleet, rng = replace(FLEET, workers=1, failures=failures), np.random.default_rng(1)
    outcomes = [simulate(fleet, rng) for _ in range(200)]
    f = failures / 3600
    again = math.expm1(f * TURN)  # failed attempts for each shard
    lost = again / f - TURN  # seconds of them: 1 / f (e^(f T) - 1) is all work, of which T succeeds
    expected = {
        "seconds": 30 + 100 * expected_seconds(fleet), "failures": 100 * again, "lost": 100 * lost,
        "work": 30 + 100 * (TURN + lost + again * 30),
    }  # fmt: skip
    for name, value in expected.items():
        found = np.array([getattr(outcome, name) for outcome in outcomes], float)
        assert abs(found.mean() - value) < 4 * found.std() / math.sqrt(len(found)), name
    assert expected_seconds(replace(fleet, failures=1e-9)) == pytest.approx(
        expected_seconds(replace(fleet, failures=0))
    )


def test_the_store_is_a_wall() -> None:
    """100,000 pictures of 5,000 bytes at 4 MB/s, and 200 requests at 0.5 per second, whatever the workers do."""
    slow = simulate(replace(FLEET, workers=50, store_bandwidth=4e6), np.random.default_rng(0))
    assert slow.seconds == pytest.approx(30 + 10 + 100_000 * 5000 / 4e6)
    few = simulate(replace(FLEET, workers=50, store_requests=0.5), np.random.default_rng(0))
    assert few.seconds == pytest.approx(30 + 10 + 200 / 0.5)
    walls = replace(FLEET, store_bandwidth=4e6, store_requests=0.5).walls()
    assert walls == {"shards": 100, "store, bytes": 4e6 * TURN / 5e6, "store, requests": 0.5 * TURN / 2}


def test_workers_without_a_shard_take_those_of_failed_ones() -> None:
    """The last shards are finished although all workers but the failed ones have nothing to do."""
    fleet, rng = replace(FLEET, workers=200, failures=300.0, replaced=1e5), np.random.default_rng(0)
    outcomes = [simulate(fleet, rng) for _ in range(20)]
    assert all(outcome.failures for outcome in outcomes)
    assert max(outcome.seconds for outcome in outcomes) < 30 + 20 * TURN, "nothing waits for replacements"


def test_the_report_says_time_price_and_walls() -> None:
    text = fleet_report(FLEET, (1, 100), 2, Prices(3.6, 10.0, 0.5))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][:3] == ["workers", "time", "pictures/s"] and [row[0] for row in rows[2:]] == ["1", "100"]
    one = dict(zip(rows[0], rows[2], strict=True))
    seconds = 30 + 100 * TURN
    assert one["time"] == f"{seconds / 60:.1f} min" and one["pictures/s"] == f"{100_000 / seconds:.0f}"
    price = 10 * (seconds / 3600 * 3.6 + 200 / 1000 * 10)
    assert one["price of a million"] == f"{price:.3f}" and one["lost"] == "0.00%"
    assert "0.5 GB, 0.25 a month." in text and "Walls: shards at 100 workers, then store, bytes at " in text
