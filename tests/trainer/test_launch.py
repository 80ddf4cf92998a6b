"""How many processes are started; how they fail, and how they stop, together."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.checkpoint import read_checkpoint
from cfgdiff.trainer.launch import how_many, launch

WORK = """
import os, signal, sys, time
import torch
from cfgdiff.runtime.errors import BadInput

def tell(processes):
    with open(f"{processes.rank}.txt", "w") as file:
        print(*processes.total(processes.rank + 1), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], file=file)

def wait(processes):
    tell(processes)
    time.sleep(60)

def refuse(processes):
    if processes.rank == 1:
        raise BadInput("--set train.batch=0: wrong")
    processes.total(1)

def stumble(processes):
    if processes.rank == 1:
        1 / 0
    processes.total(1)

def vanish(processes):
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.total(1)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that the processes can import, too."""
    (tmp_path / "launched_work.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "launched_work", raising=False)
    import launched_work

    return launched_work


def test_they_work_together_and_share_the_threads_out(work: ModuleType, tmp_path: Path) -> None:
    launch(2, 4, work.tell)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["3.0 2 2\n", "3.0 2 2\n"]


def test_the_first_failure_is_raised_and_no_other_is_shown(work: ModuleType, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(BadInput, match=r"^--set train.batch=0: wrong$"):
        launch(2, 2, work.refuse)
    assert capfd.readouterr().err == ""


def test_an_unexpected_error_shows_its_own_traceback(work: ModuleType, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        launch(2, 2, work.stumble)
    shown = capfd.readouterr().err
    assert (
        end.value.code == 1
        and shown.count("Traceback") == 1
        and shown.endswith("ZeroDivisionError: division by zero\n")
    )


def test_a_killed_process_is_named(work: ModuleType, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(Failure, match="process 2 of 2 was killed by SIGKILL"):
        launch(2, 2, work.vanish)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_all(
    number: int, work: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    def press() -> None:
        while not all((tmp_path / f"{rank}.txt").exists() for rank in (0, 1)):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as end:
        launch(2, 2, work.wait)
    assert number == signal.SIGINT or end.value.code == 143
    assert signal.getsignal(number) is before and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("batch", "parts", "on_gpus", "on_cores", "expected"),
    [
        (128, 1, 0, 2, 2),
        (128, 1, 8, 2, 8),
        (128, 1, 0, 6, 4),
        (12, 2, 0, 4, 3),
        (12, 2, 0, 1, 1),
        (7, 1, 0, 4, 1),
        (7, 2, 3, 4, 1),
    ],
)
def test_auto_is_a_process_for_each_gpu_or_core(
    batch: int, parts: int, on_gpus: int, on_cores: int, expected: int
) -> None:
    assert how_many(None, batch, parts, on_gpus, on_cores) == expected


def test_a_number_that_cannot_be_is_refused() -> None:
    assert how_many(4, 64, 1, 0, 2) == 4, "more than cores is the user's choice"
    with pytest.raises(
        BadInput, match=r"^processes: expected at most one for each GPU, of which there are 2; found 4$"
    ):
        how_many(4, 64, 1, 2, 16)
    with pytest.raises(BadInput, match=r"train.batch=64: must be a multiple of 3 process\(es\)"):
        how_many(3, 64, 1, 0, 2)


SETTINGS = ["train.batch=8", "train.image_size=16", "network.channels=16", "network.head_channels=16"]
CODE = "from cfgdiff.cli.main import main; main()"


@pytest.mark.parametrize("reach", ["the parent", "the group"])
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(reach: str, picture_folder: Path, tmp_path: Path) -> None:
    chosen = [word for setting in [*SETTINGS, "train.pictures=1000000"] for word in ("--set", setting)]
    command = ["train", "--preset", "smoke", "--data", "pictures", "--out", "run", "--processes", "2", *chosen]
    started = subprocess.Popen(
        [sys.executable, "-c", CODE, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    while started.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
        time.sleep(0.1)
    (os.killpg if reach == "the group" else os.kill)(started.pid, signal.SIGINT)
    shown = started.communicate(timeout=120)[1]
    assert started.returncode == 0, shown
    assert "Traceback" not in shown and shown.count("2 x cpu") == 1
    [line] = [line for line in shown.splitlines() if line.startswith("stopped; resume with: ")]
    assert line.endswith("cfgdiff train --resume run --processes 2")
    left = read_checkpoint(tmp_path / "run")[0]["pictures_seen"]
    assert not list((tmp_path / "run").rglob("*.partial"))
    more = [*shlex.split(line)[4:], "--set", f"train.pictures={left + 16}"]
    resumed = subprocess.run(
        [sys.executable, "-c", CODE, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert resumed.returncode == 0 and f"done: {left + 16:,} pictures" in resumed.stderr, resumed.stderr
