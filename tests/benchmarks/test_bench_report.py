"""The tables say what was measured, and what was left out."""

import io
from typing import Any

import pytest
from PIL import Image

from cfgdiff.benchmarks.bench_report import markdown, plot


@pytest.fixture
def found() -> dict[str, Any]:
    """Figures of every kind."""
    return {
        "model": "small",
        "command": "cfgdiff bench",
        "machine": {"processor": "a chip", "cores": 2},
        "threads": 2,
        "steps": 10,
        "rounds": 3,
        "skipped": ["cuda: none here"],
        "peaks": {"float32": 1e11},
        "peers": [
            {
                "loop": "cfgdiff, cpu float32",
                "B": 64,
                "pictures/s": 12.0,
                "ms": 5333.0,
                "spread": "5300.0 .. 5400.0",
                "times diffusers' fastest": 1.5,
                "ratios": [1.4, 1.5, 1.75],
            },
            {
                "loop": "two passes",
                "B": 64,
                "pictures/s": 11.0,
                "ms": 5818.0,
                "spread": "1 .. 2",
                "times diffusers' fastest": None,
                "ratios": None,
            },
        ],
        "lead": [
            {
                "B": 1,
                "loop": "cfgdiff, openvino bfloat16",
                "pictures/s": 4.0,
                "diffusers": "diffusers, eager bfloat16",
                "diffusers, pictures/s": 5.0,
                "times diffusers' fastest": 0.8,
                "ratios": [0.5, 0.8, 1.0],
                "compiled loops timed": False,
            },
            {
                "B": 64,
                "loop": "cfgdiff, openvino bfloat16",
                "pictures/s": 12.0,
                "diffusers": "diffusers, compiled float32",
                "diffusers, pictures/s": 8.0,
                "times diffusers' fastest": 1.5,
                "ratios": [1.4, 1.5, 1.75],
                "compiled loops timed": True,
            },
            {"B": 64, "loop": "cfgdiff, cpu float32", "pictures/s": 12.0, "diffusers": None, "ratios": None},
        ],
        "paper": {"n": 64, "defaults, s": 5.0, "paper's way, s": 510.0, "measured steps": 4, "times": 102.0},
        "engines": [
            {
                "engine": "cpu float32",
                "B": 1,
                "G": 1,
                "ms": 9.0,
                "spread": "8.0 .. 9.5",
                "gflops": 90.0,
                "of peak": 0.9,
                "times float32": 1.0,
            }
        ],
        "operators": [{"operator": "Conv", "share": 0.8}, {"operator": "Add", "share": 0.2}],
        "outside": [{"B": 1, "outside": 0.05, "least": 0.04, "largest": 0.06}],
        "shell": [{"call": "cfgdiff-run --n 1", "s": 0.7, "spread": "650.0 .. 720.0", "MB": 120.0}],
        "scaling": [
            {"varied": "batch", "value": 1, "ms": 9.0, "spread": "8 .. 9", "of peak": 0.3},
            {"varied": "batch", "value": 16, "ms": 4.0, "spread": "4 .. 5", "of peak": 0.7},
            {"varied": "size", "value": 64, "ms": 20.0, "spread": "19 .. 21", "of peak": 0.4},
            {"varied": "evaluations", "value": 2, "ms": 5.0, "spread": "4 .. 6", "of peak": None},
        ],
    }


def test_every_figure_is_told(found: dict[str, Any]) -> None:
    text = markdown(found)
    for line in (
        "`cfgdiff bench`",
        "processor a chip, cores 2; 2 threads.",
        "Left out: cuda: none here.",
        "Matrix product, float32: 100 GFLOP/s.",
        "| 64 | cfgdiff, cpu float32 | 12.00 | 5333 (5300.0 .. 5400.0) | 1.50 (1.40 .. 1.75) |",
        "| 64 | two passes | 11.00 | 5818 (1 .. 2) | - |",
        "| cfgdiff-run --n 1 | 0.70 | 650.0 .. 720.0 | 120 |",
        "| 1 | 1 | cpu float32 | 9.00 (8.0 .. 9.5) | 90 | 90% | 1.00 |",
        "Where it goes, guided, B = 64: Conv 80%, Add 20%.",
        "| 1 | 5.0% | 4.0% | 6.0% |",
        "| batch | 1 | 9.00 | 30% | overhead |",
        "| batch | 16 | 4.00 | 70% | compute |",
        "| size | 64 | 20.00 | 40% | memory |",
        "| evaluations | 2 | 5.00 | - | - |",
    ):
        assert line in [" ".join(found.split()) for found in text.splitlines()], (
            line
        )  # cells of a column are equally wide
    assert "64 pictures take 5.00 s at the defaults, and 510 s in 1000 steps" in text and "102 times as long." in text
    assert "## Scaling" not in markdown(found | {"scaling": []})


def test_the_report_leads_with_what_a_user_gets_and_who_is_faster(found: dict[str, Any]) -> None:
    untimed = " Compiled loops of diffusers were not timed and may be faster."
    assert markdown(found).splitlines()[:5] == [
        "# small: latency",
        "",
        "* 1 picture at a time: diffusers is 1.25 (1.00 .. 2.00) times as fast as cfgdiff; --engine auto takes "
        "openvino bfloat16 and draws 4.00 pictures/s, diffusers' fastest loop here (eager bfloat16) draws 5.00."
        + untimed,
        "* 64 pictures at a time: cfgdiff is 1.50 (1.40 .. 1.75) times as fast as diffusers; --engine auto takes "
        "openvino bfloat16 and draws 12.00 pictures/s, diffusers' fastest loop here (compiled float32) draws 8.00.",
        "* 64 pictures at a time: --engine auto takes cpu float32 and draws 12.00 pictures/s; no loop of diffusers "
        "was timed.",
    ]


def test_the_plot_is_a_picture(found: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="needs the train extra: pip install 'cfgdiff[train]'")
    for one in (found, found | {"peers": []}):
        assert Image.open(io.BytesIO(plot(one))).size[0] > 800
