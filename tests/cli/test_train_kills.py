"""`cfgdiff train` killed before any of its file operations can be resumed, and ends with the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

EVERY = 9  # a kill before every ninth operation: prime to the operations of a checkpoint, so that all kinds are met
SCRIPT = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from faults import every_kill, outcome
import torch
from safetensors.torch import load_file
from cfgdiff.cli import progress
from cfgdiff.cli.train import train
from cfgdiff.export import card
from cfgdiff.runtime.cache import cache_folder
from cfgdiff.trainer import callbacks, power_ema, optim, unet
from cfgdiff.trainer.checkpoint import find_checkpoint, has_checkpoint, read_checkpoint
from torch.utils.flop_counter import FlopCounterMode
torch.set_num_threads(1)
folder = Path({folder!r})
run, kept = folder / "run", folder / "undisturbed"
new = ["--preset", "smoke", "--data", str(folder / "data"), "--out", str(run)]
for setting in {settings!r}:
    new += ["--set", setting]

def prepare():
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(cache_folder(), ignore_errors=True)

def start():
    train.main(new, standalone_mode=False)

def keep():
    run.rename(kept)

def check():
    for checkpoint in (run / "checkpoints").glob("[0-9a-z]*"):
        read_checkpoint(checkpoint)

def go_on():
    train.main(["--resume", str(run)] if has_checkpoint(run) else new, standalone_mode=False)

def reported(root):
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return set((line["pictures"], *sorted(line)) for line in lines)  # what was measured at the end may be there twice

def after():
    expected, found = (load_file(find_checkpoint(path) / "tensors.safetensors") for path in (kept, run))
    assert expected.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())
    assert not list(run.rglob(".*")), list(run.rglob(".*"))
    names = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (kept, run)]
    assert names[0] == names[1], names
    assert reported(kept) == reported(run)

outcome(lambda: (prepare(), start(), keep()))
print(every_kill(prepare, start, folder, lambda k: outcome(lambda: (check(), go_on(), after())), every={every}))
"""
SETTINGS = [
    "network.channels=8",
    "network.head_channels=8",
    "network.multipliers=[1]",
    "network.attention=[]",
    "train.image_size=8",
]
SETTINGS += ["train.pictures=32", "train.batch=8", "train.checkpoint_seconds=0.0001", "callbacks.best={}"]
SETTINGS += ["callbacks.snapshots={snapshots: 2}"]
SETTINGS += ["callbacks.tensorboard=null", "callbacks.preview={rows: 1, steps: 1}", "callbacks.meter={seconds: 0}"]


def test_a_kill_before_any_file_operation_is_gone_on_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), settings=SETTINGS, every=EVERY)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 8
