"""`cfgdiff-run` killed before every operation on a file: nothing is lost or half-written, and the next call cleans up."""

import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import os, shutil, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import faults
from PIL import Image
from cfgdiff import runtime
from cfgdiff.cli import draw as _, opening, run

class Fast:
    name, precision, max_batch = "cpu", "float32", 64
    def predict(self, sample, timestep, class_label, guidance):
        return np.tanh(sample[..., ::-1, :])
    def close(self):
        pass

bundle = runtime.load_bundle()
runtime.load_bundle = lambda path: bundle
opening.open_engine = lambda *_, **__: Fast()
Image.init()
folder, target, flags = Path(sys.argv[2]), Path(sys.argv[2]) / sys.argv[3], sys.argv[4:]

def draw():
    sys.stderr = open(os.devnull, "w")
    run.command.main([*flags, "--out", str(target)], standalone_mode=False)

def files():
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def start():
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if target.suffix:
        target.write_bytes(b"earlier")

start()
assert faults.outcome(draw)
whole = files()

def check(k):
    for name, data in files().items():
        visible = not Path(name).name.startswith(".")
        assert not visible or data in (b"earlier", whole[name]), f"kill {k}: {name} is half-written"
    assert not target.suffix or target.is_file(), f"kill {k}: {target} is lost"
    assert faults.outcome(draw)
    assert files() == whole, f"kill {k}: left {sorted(files().keys() ^ whole.keys())}"

print(faults.every_kill(start, draw, folder, check))
"""
JOB = ["--class", "cat,dog", "--n", "2", "--steps", "1", "--batch", "1"]


def kills(tmp_path: Path, name: str, *flags: str) -> int:
    args = [str(Path(__file__).parents[1]), str(tmp_path / "out"), name, *flags]
    result = subprocess.run([sys.executable, "-c", DRIVER, *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize(
    ("name", "flags", "least"),
    [
        ("pictures", [*JOB, "--resume"], 11),
        ("grid.png", JOB, 4),
        ("one.jpg", ["--class", "cat", "--n", "1", "--steps", "1"], 4),
        ("moving.gif", JOB, 4),
        ("arrays.npz", JOB, 10),
        ("data.tar", JOB, 15),
        ("data.tar", [*JOB, "--resume"], 15),
    ],
)
def test_killed_anywhere_nothing_is_lost_and_the_next_call_cleans_up(tmp_path: Path, name: str, flags: list[str], least: int) -> None:
    assert kills(tmp_path, name, *flags) >= least
