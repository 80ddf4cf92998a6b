"""Every engine is called at every batch that it takes, and the ratios to float32 are those of the same round."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks.calls import call_rows, call_table, open_all, operators
from cfgdiff.cli.bench import bench
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure


class Sleeper:
    """An engine that takes its time."""

    precision, max_batch = "float32", 8

    def __init__(self, name: str, seconds: float, calls: list) -> None:
        self.name, self._seconds, self._calls = name, seconds, calls

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        self._calls.append((self.name, len(sample), len(guidance)))
        time.sleep(self._seconds)
        return sample

    def close(self) -> None:
        """Nothing to give back."""


def test_engines_take_turns_at_every_batch_that_they_take(packaged: Bundle) -> None:
    calls: list[tuple] = []
    slow, fast = Sleeper("cpu float32", 0.03, calls), Sleeper("fast", 0.0, calls)
    fast.max_batch = 4
    rows = call_rows({"cpu float32": slow, "fast": fast}, packaged, [2, 8], 3, {"float32": 1e9})
    both = [[("cpu float32", 2, g), ("fast", 2, g)] * 4 for g in (0, 2)]
    assert calls == both[0] + both[1] + [("cpu float32", 8, 0)] * 4 + [("cpu float32", 8, 8)] * 4
    assert [(row["engine"], row["B"], row["G"]) for row in rows] == [
        ("cpu float32", 2, 0), ("fast", 2, 0), ("cpu float32", 2, 2), ("fast", 2, 2),
        ("cpu float32", 8, 0), ("cpu float32", 8, 8),
    ]  # fmt: skip
    assert rows[0]["ms"] >= 30 > rows[1]["ms"] and rows[1]["times float32"] > rows[0]["times float32"] == 1
    assert all(row["of peak"] == pytest.approx(row["gflops"]) for row in rows)


def test_the_table_shows_time_work_and_ratio(packaged: Bundle) -> None:
    rows = call_rows({"other": Sleeper("other", 0.0, [])}, packaged, [1], 1, {})
    assert rows[0]["of peak"] is rows[0]["times float32"] is None
    row = {
        "B": 8,
        "G": 8,
        "engine": "cpu int8",
        "ms": 10.0,
        "spread": "5.0 .. 20.0",
        "gflops": 99.6,
        "of peak": 0.5,
        "times float32": 2.0,
    }
    head, _, *lines = call_table([row, row | rows[0], row | {"G": 0}]).splitlines()
    assert head.split() == [
        "|",
        "B",
        "|",
        "G",
        "|",
        "engine",
        "|",
        "ms",
        "|",
        "GFLOP/s",
        "|",
        "of",
        "the",
        "matrix",
        "product",
        "|",
        "times",
        "cpu",
        "float32",
        "|",
    ]
    assert lines[0].split() == [
        "|",
        "8",
        "|",
        "8",
        "|",
        "cpu",
        "int8",
        "|",
        "10.00",
        "(5.0",
        "..",
        "20.0)",
        "|",
        "100",
        "|",
        "50%",
        "|",
        "2.00",
        "|",
    ]
    assert lines[1].split()[-4:] == ["-", "|", "-", "|"] and len({len(line) for line in lines}) == 1


def test_reasons_are_told_once(small_bundle: Bundle, set_openers: Callable) -> None:
    def refuse(*_: object) -> None:
        raise Failure("not here")

    def open_as(name: str) -> Callable[..., Sleeper]:
        return lambda *_: Sleeper(name, 0.0, [])

    set_openers({"cpu": open_as("cpu"), "cuda": refuse, "openvino": open_as("openvino")})
    with ExitStack() as held:
        opened, reasons = open_all(small_bundle, held)
    variants = ["float32", "float16", "int8"]
    assert list(opened) == [
        *(f"cpu {name}" for name in variants),
        *(f"openvino {name}" for name in [*variants, "bfloat16"]),
    ]
    assert reasons == {"not here": [f"cuda {name}" for name in variants]}


def test_the_command_times_the_packaged_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, ["calls", "--batches", "1", "--rounds", "1"], catch_exceptions=False)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()]
    timed = {(row[0], row[1], row[2]) for row in rows}
    assert {("1", "0", "cpu float32"), ("1", "1", "cpu float32")} <= timed
    left_out = [line.split(": left out: ") for line in result.stderr.splitlines()]
    for name in ("cuda float32", "openvino float32", "openvino bfloat16"):  # timed, or said why not
        assert ("1", "1", name) in timed or [reason for names, reason in left_out if name in names.split(", ")], (
            result.stderr
        )
    with pytest.raises(Failure, match="no bundle there"):
        CliRunner().invoke(bench, ["calls", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize("wrong", ["", "0", "8,", "a", "5000"])
def test_batches_are_read_or_refused(wrong: str) -> None:
    result = CliRunner().invoke(bench, ["calls", "--batches", wrong])
    assert result.exit_code == 2 and "--batches: expected numbers from 1 to 4096" in result.output


def test_the_shares_of_operators_are_of_the_whole(small_bundle: Bundle) -> None:
    rows = operators(small_bundle.path / "model.onnx", small_bundle, 4, 1)
    shares = [row["share"] for row in rows]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert any("Conv" in row["operator"] for row in rows[:4])
