"""What training shows: a bar in a terminal, elsewhere a line now and then."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.cli import progress
from cfgdiff.cli.progress import Lines, train_with_progress
from cfgdiff.trainer.build import new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import PictureSet


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture) -> None:
    now = [0.0]
    run = SimpleNamespace(pictures_seen=100, config=SimpleNamespace(train=SimpleNamespace(pictures=10_000)))
    lines = Lines(run, clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(1, 131):
        now[0], run.pictures_seen = float(second), 100 + 10 * second
        lines.step(run, 0.5)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == [
        f"{seen} of 10,000 pictures, loss 0.5000, 10 pictures/s" for seen in ("110", "710", "1,310")
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.zeros((38, 3, 8, 8), np.uint8)
    data = PictureSet(
        "night", ["dark"], pictures, np.zeros(38, np.int64), pictures[:1], np.zeros(1, np.int64), ("all is dark",)
    )
    network = {"channels": 8, "multipliers": [1], "attention": [], "head_channels": 8, "patch": 2}
    run = new_run(
        make_config({"network": network, "train": {"pictures": 8, "batch": 4, "image_size": 8}}),
        data,
        tmp_path / "run",
        "train",
    )
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    train_with_progress(run, [])
    text = shown.getvalue()
    assert ("%|" in text) == ("\r" in text) == terminal
    assert ("4 of 8 pictures, loss" in text) == (not terminal)
    assert (
        "night: all is dark\n38 pictures in 1 class, 1 more held out; " in text
        and "done: 8 pictures, test loss" in text
    )
    assert progress.SECONDS >= 30, "a log of a day must stay readable"
