"""What is not the engine is counted as such, and whole calls are measured to their end."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks.shell import outside_rows, shell_rows
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure


def test_only_what_is_not_the_engine_counts(small_bundle: Bundle, sleeper: Any) -> None:
    slow, fast = (outside_rows(sleeper(seconds), small_bundle, [2], 2)[0] for seconds in (0.02, 0.0))
    assert slow["B"] == 2 and 0 < slow["outside"] < fast["outside"] < 1
    assert slow["least"] <= slow["outside"] <= slow["largest"]


def test_whole_calls_are_timed_or_their_failure_is_told(small_bundle: Bundle, tmp_path: Path) -> None:
    (row,) = shell_rows(small_bundle.path, [2], 1, 1)
    assert row["call"] == "cfgdiff-run --n 2" and 0.1 < row["s"] < 60 and 30 < row["MB"] < 2000
    with pytest.raises(Failure, match=r"^cfgdiff-run --n 1: fails \(Error: .*no bundle there"):
        shell_rows(tmp_path, [1], 1, 1)
