"""One process and two, by --processes or torchrun: the same pictures in the same order, losses and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cfgdiff.runtime.errors import BadInput
from cfgdiff.trainer.checkpoint import find_checkpoint, read_checkpoint
from cfgdiff.trainer.distributed import Processes, joined

PLUGIN = """
import torch
from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.registry import register

@register("callback", "each")
class Each(Callback):
    "Reports the loss of every step."
    def __init__(self, run): pass
    def step(self, run, loss): run.report({"step_loss": loss})
"""
SETTINGS = [
    "train.precision=float32",
    "train.pictures=96",
    "train.batch=8",
    "train.image_size=16",
    "network.channels=16",
    "network.head_channels=16",
]
CODE = "from cfgdiff.cli.main import main; main()"


def train(
    folder: Path, out: str, torchrun: int, *more: str, resumed: bool = False
) -> "subprocess.CompletedProcess[str]":
    (folder / "each.py").write_text(PLUGIN)
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(torchrun),
        "--no-python",
        sys.executable,
    ]
    chosen = [word for setting in [*SETTINGS, "callbacks.each={}"] for word in ("--set", setting)]
    new_or_old = ["--resume", out] if resumed else ["--preset", "smoke", "--out", out]
    command = ["train", *new_or_old, "--data", str(folder / "pictures"), "--plugin", "each.py", "--threads", "1"]
    return subprocess.run(
        [sys.executable, *(launcher if torchrun else []), "-c", CODE, *command, *chosen, *more],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip


def step_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step_loss"] for line in lines if "step_loss" in line]


def test_two_processes_train_like_one_sharded_or_not(picture_folder: Path, tmp_path: Path) -> None:
    for out, count, torchrun, more in (
        ("one", 1, 0, ()), ("two", 2, 0, ("--processes", "2")), ("shards", 2, 2, ("--set", "train.shard=true")),
    ):  # fmt: skip
        result = train(tmp_path, out, torchrun, *more)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count(f"{count} x cpu") == 1 and result.stderr.count("done: 96 pictures") == 1
    one, *others = (step_losses(tmp_path / out) for out in ("one", "two", "shards"))
    kept, *others_kept = (
        load_file(find_checkpoint(tmp_path / out) / "tensors.safetensors") for out in ("one", "two", "shards")
    )
    assert len(one) == 12
    for found, tensors in zip(others, others_kept, strict=True):
        assert found == pytest.approx(one, rel=1e-3) and tensors.keys() == kept.keys()
        for name, value in kept.items():
            assert tensors[name].shape == value.shape
            if name.startswith(("network.", "ema.", "callback.")):
                torch.testing.assert_close(tensors[name], value, rtol=0.02, atol=5e-3)
    snapshots = [sorted(p.name for p in (tmp_path / out / "ema").iterdir()) for out in ("one", "two", "shards")]
    assert snapshots[0] and snapshots[1] == snapshots[2] == snapshots[0]
    more = train(tmp_path, "shards", 0, "--processes", "2", "--set", "train.pictures=128", resumed=True)
    assert more.returncode == 0 and read_checkpoint(tmp_path / "shards")[0]["pictures_seen"] == 128, more.stderr


CRASH = """
import os
from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.registry import register

@register("callback", "crash")
class Crash(Callback):
    "Ends the process without a word, once."
    def __init__(self, run): pass
    def step(self, run, loss):
        if run.step == 6 and not os.path.exists("crashed"):
            run.save()
            open("crashed", "w").close()
            os._exit(9)
"""


def test_torchrun_restarts_from_the_last_checkpoint(picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "each.py").write_text(PLUGIN)
    (tmp_path / "crash.py").write_text(CRASH)
    chosen = [word for setting in [*SETTINGS, "callbacks.each={}", "callbacks.crash={}"] for word in ("--set", setting)]
    command = [
        "train",
        "--preset",
        "smoke",
        "--data",
        "pictures",
        "--out",
        "run",
        "--plugin",
        "each.py",
        "--plugin",
        "crash.py",
        *chosen,
    ]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--no-python",
    ]
    result = subprocess.run(
        [sys.executable, *torchrun, sys.executable, "-c", CODE, *command],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "crashed").exists() and read_checkpoint(tmp_path / "run")[0]["pictures_seen"] == 96
    assert len(step_losses(tmp_path / "run")) in (11, 12)  # the crash came before the sixth step was logged, or after


def test_rows_are_shared_out_evenly_or_refused() -> None:
    cpu = torch.device("cpu")
    shares = [Processes(cpu, rank, 4).rows(64, 2) for rank in range(4)]
    assert [list(range(64))[rows] for rows in shares] == [list(range(k, k + 16)) for k in (0, 16, 32, 48)]
    with pytest.raises(
        BadInput, match=r"train.batch=60: must be a multiple of 4 process\(es\) times train.accumulate=2"
    ):
        Processes(cpu, 0, 4).rows(60, 2)


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined() as processes:
        assert processes.main and processes.size == 1 and processes.total(1.5, 2.0) == [1.5, 2.0]
        with processes.main_first():
            assert not torch.distributed.is_initialized()
