"""What a report calls its figures, and how it writes them. The whole page is tested with the command."""

from typing import Any

from cfgdiff.benchmarks.measures import quality_names
from cfgdiff.benchmarks.report import sweep_cells


def test_only_inceptions_distances_have_the_fields_names() -> None:
    assert quality_names(True) == {
        "frechet": "FID", "kernel": "KID", "precision": "precision", "recall": "recall", "score": "Inception Score",
    }  # fmt: skip
    others = quality_names(False)
    assert list(others) == list(quality_names(True)) and not {"FID", "KID", "Inception Score"} & set(others.values())


def test_a_sweep_is_written_out() -> None:
    row: dict[str, Any] = {"sampler": "ddim", "guidance": 3.0, "interval": None, "evaluations": 10, "frechet": 1.234}
    row |= {"accuracy": 0.5, "teacher": 0.456}
    rows = [row, row | {"accuracy": None}, row | {"interval": (0.3, 10.0), "guidance": 1.5}]
    del rows[2]["teacher"]
    assert sweep_cells(rows) == [
        ["ddim", "3", "all", "10", "1.23", "0.46", "50.0 %"],
        ["ddim", "3", "all", "10", "1.23", "0.46", "-"],
        ["ddim", "1.5", "0.3 .. 10", "10", "1.23", "-", "50.0 %"],
    ]
