"""cfgdiff-run and eval killed before every operation on a file: nothing is lost, and the next call cleans up."""

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
        visible = not any(part.startswith(".") for part in Path(name).parts)
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
        ("set", [*JOB, "--shard-size", "2"], 15),
        ("set", [*JOB, "--shard-size", "2", "--shard-format", "folder"], 15),
    ],
)
def test_killed_anywhere_nothing_is_lost_and_the_next_call_cleans_up(
    tmp_path: Path, name: str, flags: list[str], least: int
) -> None:
    assert kills(tmp_path, name, *flags) >= least


EVALUATE = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
import faults
from PIL import Image
from cfgdiff import runtime
from cfgdiff.benchmarks import blocks, features, figures, report
from cfgdiff.cli import evaluate

class Fast:
    name, precision, max_batch = "cpu", "float32", 64
    def predict(self, sample, timestep, class_label, guidance):
        return np.tanh(sample[..., ::-1, :])
    def close(self):
        pass

def means(pictures):
    return pictures.mean((1, 2), dtype=np.float32), np.zeros((len(pictures), 0), np.float32)

blocks.BLOCK = 16  # pictures in a block
bundle = runtime.load_bundle()
runtime.load_bundle, runtime.open_engine = lambda path: bundle, lambda *_, **__: Fast()
features.choose_judges = lambda *_: (None, features.Extractor("means", "0" * 64, False, means), None, [])
Image.init()
folder = Path(sys.argv[2])
words = ["--n", "32", "--steps", "1", "--no-sweep", "--best", "0", "--out", str(folder)]

def measure():
    sys.stdout = sys.stderr = open(os.devnull, "w")
    evaluate.evaluate.main(words, standalone_mode=False)

def samples():
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "samples").rglob("*") if p.is_file()}

def start():
    shutil.rmtree(folder, ignore_errors=True)

start()
assert faults.outcome(measure)
whole = samples()

def check(k):
    for name, data in samples().items():
        assert Path(name).name.startswith(".") or data == whole[name], f"kill {k}: {name} is half-written"
    assert faults.outcome(measure)
    assert samples() == whole, f"kill {k}: left {sorted(samples().keys() ^ whole.keys())}"
    assert sorted(os.listdir(folder)) == ["report.html", "report.json", "samples"], f"kill {k}: {os.listdir(folder)}"
    assert json.loads((folder / "report.json").read_text())["n"] == 32
    assert (folder / "report.html").read_text().endswith("</html>")

print(faults.every_kill(start, measure, folder.parent, check))
"""


def test_eval_killed_anywhere_goes_on_with_the_samples_that_are_there(tmp_path: Path) -> None:
    args = [str(Path(__file__).parents[1]), str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", EVALUATE, *args], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 16  # protocol, two blocks, report.json and report.html: opened, written, renamed
