"""Damaged and missing checkpoints say what is wrong; a failed write leaves the earlier one alone."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import checkpoint
from cfgdiff.trainer.build import DEFAULT_CALLBACKS, add_callbacks, new_run
from cfgdiff.trainer.callbacks import Best
from cfgdiff.trainer.checkpoint import find_checkpoint, read_checkpoint, write_checkpoint
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import PictureSet
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.power_ema import PowerEMA
from cfgdiff.trainer.start import resume
from cfgdiff.trainer.weights import load_model

STATE = {
    "config": {}, "class_names": ["cat"], "image_shape": [3, 32, 32], "data_set": "cats", "command": "cfgdiff train",
    "step": 8, "pictures_seen": 64, "hours": 0.5, "test_loss": None, "initialised_from": None, "decaying": False,
    "scaler": {},
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "step: Input should be a valid integer, found None"),
        ({"step": "8"}, "step: Input should be a valid integer, found '8'"),
        ({"step": 10**400}, "step: Input should be less than or equal to"),
        ({"pictures_seen": -1}, "pictures_seen: Input should be greater than or equal to 0, found -1"),
        ({"hours": float("nan")}, "hours: Input should be a finite number"),
        ({"class_names": "cat"}, "class_names: Input should be a valid list, found 'cat'"),
        ({"class_names": []}, "class_names: List should have at least 1 item"),
        ({"image_shape": [3, 32]}, "image_shape: List should have at least 3 items"),
        ({"image_shape": [3, 32, -32]}, r"image_shape\.2: Input should be greater"),
        ({"config": []}, "config: Input should be a valid dictionary"),
        ({"config": {"train": []}}, "config: train: Input should be a valid dictionary"),
        ({"config": {"train": {"batch": "x"}}}, r"config: train\.batch: Input should be a valid integer"),
        ({"scaler": {"scale": 2.0}}, "scaler: must have _growth_tracker, backoff_factor"),
        ({"data": 5}, "data: Input should be a valid string, found 5"),
    ],
)
def test_a_state_of_the_wrong_kind_is_one_line(change: dict, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "000000064", STATE | change, {"a": torch.ones(2)})
    with pytest.raises(
        Failure, match=rf"000000064: damaged checkpoint \(state\.json: {message}.*\); remove this folder"
    ) as error:
        read_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", STATE)
def test_a_state_that_lacks_a_key_says_which(key: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "000000064", {k: v for k, v in STATE.items() if k != key}, {"a": torch.ones(2)})
    with pytest.raises(Failure, match=rf"damaged checkpoint \(state\.json: {key}: is missing\)"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "null", '{"format": 1}', '{"format": [1]}', "\ud800"])
def test_a_state_that_is_something_else_is_one_line(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "000000064", STATE, {"a": torch.ones(2)})
    (find_checkpoint(tmp_path) / "state.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(
        Failure, match=r"^.*000000064: (damaged checkpoint \(.+\); remove|checkpoint format \[1\], expected 1)"
    ) as error:
        read_checkpoint(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    tensors = {"network.a": torch.ones(2), "callback.best.lowest": torch.tensor(float("inf"))}
    write_checkpoint(tmp_path, "000000064", STATE, tensors)
    assert read_checkpoint(tmp_path)[1].keys() == tensors.keys()
    write_checkpoint(tmp_path, "000000128", STATE, tensors | {"ema.b": torch.tensor([1.0, value])})
    with pytest.raises(Failure, match=r"000000128: damaged checkpoint \(ema\.b holds values that are not finite\)"):
        read_checkpoint(tmp_path)


def noise() -> PictureSet:
    """Eight pictures of two classes."""
    pictures = np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8)
    return PictureSet("noise", ["a", "b"], pictures, np.arange(8) % 2, pictures[:2], np.arange(2))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with AdamW and Muon."""
    out = tmp_path_factory.mktemp("small") / "run"
    config = make_config({
        "network": {"channels": 8, "multipliers": [1], "attention": [], "head_channels": 8, "patch": 2},
        "optimiser": {"name": "muon"}, "train": {"pictures": 8, "batch": 4, "image_size": 8}, "callbacks": {"best": {}},
    })  # fmt: skip
    run = new_run(config, noise(), out, "cfgdiff train")
    run.callbacks += [PowerEMA(run), Best(run)]
    run.callbacks[0].name, run.callbacks[1].name = "snapshots", "best"
    train(run)
    return out


def going_on(run: Path) -> None:
    """Read it in both ways, and train on."""
    load_model(run)
    resumed = resume(run, lambda tree: make_config(tree, ("train.pictures=16",)), lambda _: noise(), "more", None)
    callbacks = dict.fromkeys(DEFAULT_CALLBACKS) | {"snapshots": {}, "best": {}}
    resumed.config = make_config(resumed.config.model_dump() | {"callbacks": callbacks})
    add_callbacks(resumed)
    train(resumed)


DAMAGED = [
    "network.stem.weight", "ema.label.weight", "optimiser.0.0.exp_avg", "optimiser.0.0.step", "optimiser.1.0.momentum",
    "callback.snapshots.0.stem.weight", "callback.best.lowest",
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["shape", "kind", "missing", "name"])
def test_tensors_that_do_not_fit_are_named(name: str, damage: str, small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    file = find_checkpoint(run) / "tensors.safetensors"
    tensors = load_file(file)
    if damage in ("shape", "kind"):
        tensors[name] = torch.ones(3, 5) if damage == "shape" else tensors[name].to(torch.int64)
    else:
        moved = tensors.pop(name)
        tensors |= {f"{name}.x": moved} if damage == "name" else {}
    save_file(tensors, file)
    if (name.startswith("callback") and damage != "shape") or (
        name.endswith("momentum") and damage == "missing"
    ):  # it begins anew: nothing but that is lost
        going_on(run)
        assert find_checkpoint(run).name == "000000016"
        return
    part = name.split(".")[-1 if name.startswith("optimiser") else 1]
    with pytest.raises(Failure, match=rf"000000008: damaged checkpoint \(.*{part}.*\); remove this folder") as error:
        going_on(run)
    assert "\n" not in str(error.value)


def test_a_run_whose_weights_are_no_longer_finite_writes_no_checkpoint(small_run: Path, tmp_path: Path) -> None:
    run = resume(small_run, make_config, lambda _: noise(), "more", None)
    run.out = tmp_path / "run"
    torch.nn.init.constant_(run.network.stem.weight, float("nan"))
    with pytest.raises(
        Failure, match=r"^network\.stem\.weight is no longer finite after 8 pictures: no checkpoint written; lower"
    ):
        run.save()
    assert not run.out.exists()


def test_data_of_other_classes_or_shape_are_not_gone_on_with(small_run: Path) -> None:
    for change, message in (
        ({"class_names": ["a", "c"]}, r"data set 'noise' has the classes a, c; the run .*run has a, b"),
        (
            {name: np.zeros((4, 3, 16, 16), np.uint8) for name in ("pictures", "test_pictures")},
            "has the shape 3, 16, 16; the run",
        ),
    ):
        with pytest.raises(Failure, match=message):
            resume(
                small_run, make_config, lambda _, change=change: dataclasses.replace(noise(), **change), "more", None
            )


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from faults import every_kill, outcome
import shutil, torch
from cfgdiff.trainer.checkpoint import BEFORE_DECAY, find_checkpoint, read_checkpoint, write_checkpoint
run = Path({root!r})
root, state = run / "checkpoints", {state!r}

def prepare():
    shutil.rmtree(run, ignore_errors=True)
    for name in ("000000064", "000000192", BEFORE_DECAY):
        write_checkpoint(run, name, state | {{"step": 1}}, {{"a": torch.ones(2)}}, keep=5)

def work():
    for name in (BEFORE_DECAY, "000000128"):
        write_checkpoint(run, name, state | {{"step": 2}}, {{"a": torch.full((2,), 2.0)}}, keep=1)

def check():
    newest = find_checkpoint(run)
    for folder in (newest, root / BEFORE_DECAY):
        found, tensors = read_checkpoint(folder)
        assert tensors["a"].tolist() == [found["step"]] * 2
    assert newest.name in ("000000192", "000000128", "000000064")

def after():
    check()
    write_checkpoint(run, "000000256", state | {{"step": 3}}, {{"a": torch.full((2,), 3.0)}}, keep=1)
    assert sorted(p.name for p in root.iterdir()) == ["000000256", BEFORE_DECAY], list(root.iterdir())

prepare(), check()  # once, so that what they import is there before the forks
print(every_kill(prepare, work, run, lambda k: outcome(lambda: (check(), work(), after()))))
"""


def test_a_kill_before_any_file_operation_loses_no_checkpoint(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path / "run"), state=STATE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15  # two folders written, one of them in the place of another, two removed


def test_a_checkpoint_from_before_a_callback_was_renamed_resumes_bit_for_bit(small_run: Path, tmp_path: Path) -> None:
    kept = {}
    for name in ("present", "earlier"):
        run = Path(shutil.copytree(small_run, tmp_path / name))
        folder = find_checkpoint(run)
        state, tensors = json.loads((folder / "state.json").read_text()), load_file(folder / "tensors.safetensors")
        state["config"]["callbacks"] = {"snapshots" if name == "present" else "ema": {"snapshots": 3}}
        if name == "earlier":
            assert any(key.startswith("callback.snapshots.") for key in tensors)
            tensors = {key.replace("callback.snapshots.", "callback.ema."): value for key, value in tensors.items()}
        (folder / "state.json").write_text(json.dumps(state))
        save_file(tensors, folder / "tensors.safetensors")
        resumed = resume(run, lambda tree: make_config(tree, ("train.pictures=16",)), lambda _: noise(), "more", None)
        assert resumed.config.callbacks == {"snapshots": {"snapshots": 3}}
        add_callbacks(resumed)
        train(resumed)
        kept[name] = load_file(find_checkpoint(run) / "tensors.safetensors")
    assert kept["present"].keys() == kept["earlier"].keys()
    assert all(torch.equal(value, kept["earlier"][key]) for key, value in kept["present"].items())
