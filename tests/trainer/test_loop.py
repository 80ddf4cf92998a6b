"""A run that is killed and resumed equals an undisturbed one; a longer one continues from before the decay."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.build import new_run as create
from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.checkpoint import BEFORE_DECAY, find_checkpoint, read_checkpoint
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.loop import _batch, steps, train
from cfgdiff.trainer.run import Run
from cfgdiff.trainer.start import resume, start_from
from cfgdiff.trainer.weights import load_model

SCRIPT = """
import sys, pathlib, torch, yaml, time
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.build import add_callbacks, new_run
from cfgdiff.trainer.start import resume
torch.set_num_threads(1)
tree, data, out = yaml.safe_load(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
pause = float(sys.argv[4])
load = lambda config: load_data(data, config.train.image_size)
if (out / "checkpoints").exists():
    run = resume(out, make_config, load, "again", None)
else:
    config = make_config(tree)
    run = new_run(config, load(config), out, "first", None)
class Pause(Callback):
    def step(self, run, loss):
        time.sleep(pause)
add_callbacks(run)
run.callbacks.append(Pause())
train(run)
"""


def trained(tree: dict, data: Path, out: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
    """A training process."""
    tree = tree | {"callbacks": dict.fromkeys(("preview", "tensorboard", "validation"))}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, yaml.safe_dump(tree), str(data), str(out), str(pause)], env=environment
    )


def test_ten_sigkills_and_resumes_equal_an_undisturbed_run(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    tree = tiny_tree | {"train": tiny_tree["train"] | {"pictures": 240, "keep": 2}}
    assert trained(tree, picture_folder, tmp_path / "whole").wait() == 0
    moments = random.Random(5)
    for _ in range(10):  # at a random moment of a step or of a checkpoint, once there is a new one
        process = trained(tree, picture_folder, tmp_path / "killed", pause=0.02)
        before, deadline = len_seen(tmp_path / "killed"), time.monotonic() + 60
        while process.poll() is None and len_seen(tmp_path / "killed") <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert trained(tree, picture_folder, tmp_path / "killed").wait() == 0
    whole, other = (load_file(find_checkpoint(tmp_path / name) / "tensors.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == other.keys() and any(key.startswith("callback.snapshots.") for key in whole)
    assert [k for k in whole if not torch.equal(whole[k], other[k])] == []
    assert read_checkpoint(tmp_path / "killed")[0]["command"].count("again") == 10


def len_seen(run: Path) -> int:
    """The pictures of the newest checkpoint, 0 before the first."""
    try:
        return int(find_checkpoint(run).name)
    except Failure:
        return 0


class Hook(Callback):
    """Calls a function after every step."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def step(self, run: Run, loss: float) -> None:
        self.function()


def new_run(tree: dict, data: Path, out: Path) -> Run:
    config = make_config(tree)
    return create(config, load_data(data, config.train.image_size), out, "cfgdiff train", None)


def test_more_pictures_go_on_from_before_the_decay(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    rates: list[float] = []
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.callbacks.append(Hook(lambda: rates.append(run.optimisers[0].param_groups[0]["lr"])))
    assert train(run)
    assert rates[4] == pytest.approx(1e-3) and 0 < rates[-1] < 5e-4
    state, _ = read_checkpoint(tmp_path / "run" / "checkpoints" / BEFORE_DECAY)
    assert 0.7 * 96 <= state["pictures_seen"] < 0.7 * 96 + 8
    longer = resume(
        tmp_path / "run", lambda tree: make_config(tree, ("train.pictures=200",)), lambda _: run.data, "more", None
    )
    assert longer.pictures_seen == state["pictures_seen"]
    assert train(longer)
    assert longer.pictures_seen == 200 and find_checkpoint(tmp_path / "run").name == "000000200"
    not_decaying = resume(
        tmp_path / "run", lambda tree: make_config(tree, ("train.pictures=400",)), lambda _: run.data, "more", None
    )
    not_decaying.step, not_decaying.pictures_seen = 30, 240
    not_decaying.save()
    later = resume(
        tmp_path / "run", lambda tree: make_config(tree, ("train.pictures=500",)), lambda _: run.data, "more", None
    )
    assert later.pictures_seen == 240


def test_a_run_resumed_in_its_decay_keeps_the_checkpoint_from_before_it(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.callbacks.append(Hook(lambda: run.pictures_seen == 80 and os.kill(os.getpid(), signal.SIGTERM)))
    assert not train(run)
    seen = read_checkpoint(tmp_path / "run" / "checkpoints" / BEFORE_DECAY)[0]["pictures_seen"]
    assert train(resume(tmp_path / "run", make_config, lambda _: run.data, "again", None))
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / BEFORE_DECAY)[0]["pictures_seen"] == seen == 72


def test_a_step_returns_to_the_state_of_the_run_at_most_twice(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run, called = new_run(tiny_tree, picture_folder, tmp_path / "run"), list[str]()
    losses = steps(run)
    next(losses)

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(
            ("trainer/run.py", "trainer/objective.py", "trainer/unet.py")
        ):
            called.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")

    sys.setprofile(watch)
    next(losses)
    sys.setprofile(None)
    assert [name for name in called if name.startswith("run.")] == ["run.autocast", "run.progress"]
    way = [name for name in called if name in ("run.autocast", "objective.forward", "objective.loss", "unet.answer")]
    assert way == ["run.autocast", "objective.forward", "objective.loss", "unet.answer"]


@pytest.mark.parametrize("fast", [True, False])
def test_precision_auto_is_what_the_device_computes_in(
    fast: bool, tiny_tree: dict, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgdiff.trainer.build.fast_bfloat16", lambda device: fast)
    assert new_run(tiny_tree, picture_folder, tmp_path / "run").precision == ("bfloat16" if fast else "float32")
    named = tiny_tree | {"train": tiny_tree["train"] | {"precision": "float32"}}
    assert new_run(named, picture_folder, tmp_path / "run").precision == "float32"


def test_the_loaded_model_carries_its_provenance(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    train(new_run(tiny_tree, picture_folder, tmp_path / "run"))
    model = load_model(tmp_path / "run")
    assert model.class_names == ["blue", "green", "red"] and model.image_shape == (3, 16, 16)
    assert model.provenance["pictures_seen"] == 96 and model.provenance["data_set"] == "pictures"
    assert 0 < model.provenance["test_loss"] < 10
    assert not any(p.requires_grad for p in model.network.parameters())


def test_max_minutes_ends_the_run_with_its_decay(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree | {"train": tiny_tree["train"] | {"pictures": 10**9}}, picture_folder, tmp_path / "run")
    run.max_minutes = 2 / 60
    assert train(run)
    assert run.pictures_seen < 10**9 and (tmp_path / "run" / "checkpoints" / BEFORE_DECAY).is_dir()


def test_a_stop_request_leaves_a_checkpoint(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.callbacks.append(Hook(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert not train(run)
    assert read_checkpoint(tmp_path / "run")[0]["pictures_seen"] <= 16  # the step under way is finished


def test_a_loss_that_is_not_finite_stops_the_run(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    torch.nn.init.constant_(run.network.stem.weight, float("nan"))
    with pytest.raises(Failure, match="loss became nan"):
        train(run)


def losses(tree: dict, data: Path, out: Path, *overrides: str) -> tuple[list[float], Run]:
    """The loss of every step, and the run."""
    found: list[float] = []
    config = make_config(tree, overrides)
    run = create(config, load_data(data, config.train.image_size), out, "cfgdiff train", None)

    class Keep(Callback):
        def step(self, run: Run, loss: float) -> None:
            found.append(loss)

    run.callbacks.append(Keep())
    train(run)
    return found, run


def test_balanced_batches_hold_every_class_equally_often(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    config, data = make_config(tiny_tree, ("train.balanced=true",)), load_data(picture_folder, 16)
    uneven = replace(data, labels=np.where(np.arange(len(data.labels)) < 3, 1, 0))
    run = create(config, uneven, tmp_path / "run", "cfgdiff train", None)
    for first in (0, 8, 16):
        assert _batch(run, first)[1].bincount().tolist() == [4, 4]
    run.config = make_config(tiny_tree)
    assert sum(_batch(run, first)[1].sum().item() for first in range(0, 24, 8)) < 9


def test_accumulated_gradients_are_those_of_the_whole_batch(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    tiny_tree["network"]["dropout"] = 0.0
    tiny_tree["train"]["precision"] = "float32"  # on every processor: bfloat16 rounds each part of its own
    whole, run = losses(tiny_tree, picture_folder, tmp_path / "whole")
    parts, other = losses(tiny_tree, picture_folder, tmp_path / "parts", "train.accumulate=4")
    assert parts == pytest.approx(whole, rel=2e-3)
    for a, b in zip(run.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)
    with pytest.raises(
        BadInput, match=r"train.batch=8: must be a multiple of 1 process\(es\) times train.accumulate=3"
    ):
        losses(tiny_tree, picture_folder, tmp_path / "odd", "train.accumulate=3")


def test_clipping_bounds_the_step(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    tiny_tree["optimiser"] = {"name": "adamw", "warmup_steps": 0}
    config = make_config(tiny_tree, ("train.clip=0.001",))
    run = create(config, load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train", None)
    norms: list[float] = []
    run.optimisers[0].register_step_pre_hook(
        lambda *_: norms.append(
            sum(p.grad.square().sum().item() for p in run.network.parameters() if p.grad is not None) ** 0.5
        )
    )
    train(run)
    assert len(norms) == 12 and max(norms) == pytest.approx(0.001, rel=1e-2)


def test_float16_trains_with_a_scaler_that_a_checkpoint_keeps(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    exact, _ = losses(tiny_tree, picture_folder, tmp_path / "exact", "train.precision=float32")
    found, run = losses(tiny_tree, picture_folder, tmp_path / "half", "train.precision=float16")
    assert found == pytest.approx(exact, rel=0.05)
    kept = read_checkpoint(tmp_path / "half")[0]["scaler"]
    assert kept["scale"] == run.scaler.get_scale() > 0
    again = resume(tmp_path / "half", make_config, lambda _: run.data, "again", None)
    again.scaler.load_state_dict(kept | {"scale": 8.0})
    again.save()
    assert resume(tmp_path / "half", make_config, lambda _: run.data, "again", None).scaler.get_scale() == 8.0


def test_the_learned_weight_trains_and_stays_out_of_the_model(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    tiny_tree["objective"]["weighting"] = "learned"
    _, run = losses(tiny_tree, picture_folder, tmp_path / "run", "train.pictures=400")
    assert run.network.loss_weight.series.abs().max() > 1e-3
    model = load_model(tmp_path / "run")
    assert "loss_weight.series" in model.network.state_dict()
    plain = new_run(tiny_tree, picture_folder, tmp_path / "more")
    start_from(plain, tmp_path / "run")
    assert torch.equal(plain.network.loss_weight.series, run.ema.network.loss_weight.series)
