"""Damaged and missing checkpoints say what is wrong; a failed write leaves the earlier one alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import checkpoint
from cfgdiff.trainer.checkpoint import find_checkpoint, initial_weights, origin, read_checkpoint, write_checkpoint


def test_the_newest_is_kept_and_found(tmp_path: Path) -> None:
    for name in ("000000064", "before-decay", "000000128"):
        write_checkpoint(tmp_path, name, {"name": name}, {"a": torch.ones(2)})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000000128", "before-decay"]
    assert read_checkpoint(tmp_path)[0]["name"] == "000000128"
    assert read_checkpoint(tmp_path / "checkpoints" / "before-decay")[0]["name"] == "before-decay"


def test_the_newest_few_are_kept_and_later_ones_go(tmp_path: Path) -> None:
    for pictures in (64, 128, 192, 256, 160):  # the last as after going on from before the decay
        write_checkpoint(tmp_path, f"{pictures:09d}", {}, {"a": torch.ones(2)}, keep=3)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [128, 160]
    write_checkpoint(tmp_path, "000000200", {}, {"a": torch.ones(2)}, keep=1)
    assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir()] == [200]


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, "000000064", {}, {"a": torch.ones(2)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(Failure, match=r"No space left.*untouched"):
        write_checkpoint(tmp_path, "000000128", {}, {"a": torch.ones(2)})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000064"]
    assert find_checkpoint(tmp_path).name == "000000064"


@pytest.mark.parametrize("damage", ["truncate", "json", "future", "missing"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, "000000064", {}, {"a": torch.ones(200)})
    folder = find_checkpoint(tmp_path)
    tensors, state = folder / "tensors.safetensors", folder / "state.json"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-50])
    elif damage == "json":
        state.write_text("{")
    elif damage == "future":
        state.write_text(json.dumps({"format": 99}))
    else:
        tensors.unlink()
    with pytest.raises(Failure, match="format 99" if damage == "future" else "damaged checkpoint") as error:
        read_checkpoint(tmp_path)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_no_checkpoint_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no checkpoint there"):
        initial_weights(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(Failure, match="not a readable ONNX file"):
        initial_weights(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"provenance": 3}'])
def test_weights_that_do_not_say_where_they_come_from(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(Failure, match=r"--init .*bundle\.json: does not say where the weights come from"):
        origin(tmp_path)


def test_weights_of_a_damaged_bundle_are_not_started_from(copied: Path) -> None:
    assert "stem.weight" in initial_weights(copied)
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(data)
    with pytest.raises(Failure, match=r"model\.onnx: damaged, sha256"):
        initial_weights(copied)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from kills import every_kill
import shutil, torch
from cfgdiff.trainer.checkpoint import BEFORE_DECAY, find_checkpoint, read_checkpoint, write_checkpoint
run = Path({root!r})
root = run / "checkpoints"

def prepare():
    shutil.rmtree(run, ignore_errors=True)
    for name in ("000000064", "000000192", BEFORE_DECAY):
        write_checkpoint(run, name, {{"n": 1}}, {{"a": torch.ones(2)}}, keep=5)

def work():
    for name in (BEFORE_DECAY, "000000128"):
        write_checkpoint(run, name, {{"n": 2}}, {{"a": torch.full((2,), 2.0)}}, keep=1)

def check():
    newest = find_checkpoint(run)
    for folder in (newest, root / BEFORE_DECAY):
        state, tensors = read_checkpoint(folder)
        assert tensors["a"].tolist() == [state["n"]] * 2
    assert newest.name in ("000000192", "000000128", "000000064")

def after():
    check()
    write_checkpoint(run, "000000256", {{"n": 3}}, {{"a": torch.full((2,), 3.0)}}, keep=1)
    assert sorted(p.name for p in root.iterdir()) == ["000000256", BEFORE_DECAY], list(root.iterdir())

prepare(), check()  # once, so that what they import is there before the forks
print(every_kill(prepare, work, check, after))
"""


def test_a_kill_before_any_file_operation_loses_no_checkpoint(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15  # two folders written, one of them in the place of another, two removed
