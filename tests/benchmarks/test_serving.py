"""The comparison of the scheduler with requests one after the other, on an engine whose time is per call."""

import re
import time

import numpy as np
import pytest
from click.testing import CliRunner

from cfgdiff.benchmarks.serving import Lent, mixed_load, serving_report, single_plans, throughput
from cfgdiff.cli.bench import bench
from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.server.scheduler import Scheduler


class PerCall:
    """Takes 10 ms a call, for any number of rows. With `drifting` its answers depend on how many there are."""

    name, precision, max_batch = "per-call", "float32", 256

    def __init__(self, drifting: float = 0.0) -> None:
        self.drifting = drifting

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        time.sleep(0.01)
        return sample * np.float32(0.5 + self.drifting * len(sample))

    def close(self) -> None: ...


def test_where_time_is_per_call_sharing_calls_pays(packaged: Bundle) -> None:
    report = serving_report(packaged, PerCall(), requests=8, clients=2, rounds=1, steps=2)
    assert report.startswith(
        "per-call float32; fitted, 2 steps; 256 rows in a call\n\n8 requests for one picture each:"
    )
    times = {name: float(row) for name, row in re.findall(r"^\| (\w[\w ]+?) +\| .* \| ([\d.]+) +\|$", report, re.M)}
    assert times["one after the other"] == 1 and times["scheduler"] > 2
    assert re.search(r"\nThe 95th percentile is [\d.]+ times as short \([\d.]+ \.\. [\d.]+\)\.$", report)


def test_pictures_that_differ_are_no_result(packaged: Bundle) -> None:
    engine = PerCall(0.01)
    with (
        Scheduler(packaged, Lent(engine), rows=16) as scheduler,
        pytest.raises(Failure, match=r"differ .* by \d+ grey"),
    ):
        throughput(engine, scheduler, single_plans(packaged, 4, 2), 4, 1)


def test_the_load_is_mixed_and_repeats(packaged: Bundle) -> None:
    load = mixed_load(packaged, 8, 4, 1)
    plans = [plan for client in load for plan in client]
    assert {1, 16} < {len(plan) for plan in plans} and len({plan.course.sampler for plan in plans}) == 3
    assert len({plan.steps for plan in plans}) > 4 and len({plan.weights[0] for plan in plans}) == 3
    again = [plan for client in mixed_load(packaged, 8, 4, 1) for plan in client]
    assert [plan.seeds.tolist() for plan in again] == [plan.seeds.tolist() for plan in plans]
    few = load_bundle("cifar10-turbo")
    assert {plan.steps for client in mixed_load(few, 8, 4, 1) for plan in client} == set(few.fitted)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_engine(*args: object) -> Lent:
        opened.append(args[1:])
        return Lent(PerCall())

    monkeypatch.setattr("cfgdiff.runtime.open_engine", open_engine)
    args = ["serving", "--engine", "cpu", "--requests", "4", "--clients", "2", "--rounds", "1", "--steps", "2"]
    made = CliRunner().invoke(bench, args, catch_exceptions=False)
    assert made.exit_code == 0 and "2 clients, each with 4 requests for 1 to 64 pictures" in made.output
    assert opened == [("cpu", "auto", None)]
