"""Damaged and missing checkpoints say what is wrong; a failed write leaves the earlier one alone."""

import json
from pathlib import Path

import pytest
import torch

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import checkpoint
from cfgdiff.trainer.checkpoint import find_checkpoint, initial_weights, origin, read_checkpoint, write_checkpoint

STATE = {
    "config": {}, "class_names": ["cat"], "image_shape": [3, 32, 32], "data_set": "cats", "command": "cfgdiff train", "step": 8,
    "pictures_seen": 64, "hours": 0.5, "test_loss": None, "initialised_from": None, "decaying": False, "scaler": {},
}  # fmt: skip


def test_the_newest_is_kept_and_found(tmp_path: Path) -> None:
    for name in ("000000064", "before-decay", "000000128"):
        write_checkpoint(tmp_path, name, STATE | {"name": name}, {"a": torch.ones(2)})
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
    write_checkpoint(tmp_path, "000000064", STATE, {"a": torch.ones(200)})
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
