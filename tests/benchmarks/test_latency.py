"""What is timed is what took its time, and the ratios are those of the same round."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks.latency import measure, open_all, parse_batches, table
from cfgdiff.benchmarks.timing import Case
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure


class Sleeper:
    """An engine that takes its time."""

    precision, max_batch = "float32", 8

    def __init__(self, name: str, seconds: float, calls: list) -> None:
        self.name, self._seconds, self._calls = name, seconds, calls

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        self._calls.append((self.name, len(sample), len(guidance)))
        time.sleep(self._seconds)
        return sample

    def close(self) -> None:
        """Nothing to give back."""


def test_engines_take_turns_at_every_batch_that_they_take(packaged: Bundle) -> None:
    calls: list[tuple] = []
    slow, fast = Sleeper("cpu float32", 0.03, calls), Sleeper("fast", 0.0, calls)
    fast.max_batch = 4
    found = measure({"cpu float32": slow, "fast": fast}, packaged, [2, 8], rounds=3)
    assert calls == [("cpu float32", 2, 2), ("fast", 2, 2)] * 4 + [("cpu float32", 8, 8)] * 4
    assert [(case.name, case.pictures, len(case.seconds)) for case in found] == [
        ("cpu float32", 2, 3),
        ("fast", 2, 3),
        ("cpu float32", 8, 3),
    ]
    assert min(found[0].seconds) >= 0.03 > found[1].median


def test_the_table_gives_ratios_of_the_same_round() -> None:
    rows = table([Case("cpu float32", 8, [0.01, 0.02, 0.04]), Case("cpu int8", 8, [0.005, 0.01, 0.02])]).splitlines()
    assert rows[2] == "| 8 | cpu float32 | 20.00 (10.0 .. 40.0) | 20.0 | 1.00 |"
    assert rows[3] == "| 8 | cpu int8 | 10.00 (5.0 .. 20.0) | 40.0 | 2.00 |"


def test_batches_are_read_or_refused() -> None:
    assert parse_batches("1,8,64") == [1, 8, 64]
    for wrong in ("", "0", "8,", "a", "5000"):
        with pytest.raises(click.UsageError, match="--batches: expected numbers from 1 to 4096"):
            parse_batches(wrong)


def test_reasons_are_told_once(small_bundle: Bundle, set_openers: Callable) -> None:
    def refuse(*_: object) -> None:
        raise Failure("not here")

    def open_as(name: str) -> Callable[..., Sleeper]:
        return lambda *_: Sleeper(name, 0.0, [])

    set_openers({"cpu": open_as("cpu"), "cuda": refuse, "openvino": open_as("openvino")})
    with ExitStack() as held:
        opened, reasons = open_all(small_bundle, held)
    variants = ["float32", "float16", "int8"]
    assert list(opened) == [*(f"cpu {name}" for name in variants), *(f"openvino {name}" for name in [*variants, "bfloat16"])]
    assert reasons == {"not here": [f"cuda {name}" for name in variants]}


def test_the_command_times_the_packaged_model(tmp_path: Path) -> None:
    def call(*args: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", "cfgdiff.benchmarks.latency", *map(str, args)], capture_output=True, text=True)

    made = call("--batches", "1", "--rounds", 1)
    assert made.returncode == 0 and "| 1 | cpu float32 |" in made.stdout, made.stderr
    left_out = [line.split(": left out: ") for line in made.stderr.splitlines()]
    for name in ("cuda float32", "openvino float32", "openvino bfloat16"):  # timed, or said why not
        assert f"| 1 | {name} |" in made.stdout or [reason for names, reason in left_out if name in names.split(", ")], made.stderr
    missing = call(tmp_path)
    assert missing.returncode == 1 and "no bundle there" in missing.stderr and "Traceback" not in missing.stderr
