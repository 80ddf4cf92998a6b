"""What a tracker is told, with a stand-in for its package."""

import sys
import types
from pathlib import Path

import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.build import add_callbacks, new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.loop import train


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_every_report_is_handed_on(package: str, tiny_tree: dict, picture_folder: Path, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    told: list[tuple] = []
    fake = types.SimpleNamespace(
        init=lambda **settings: told.append(("init", settings)),
        log=lambda values, step: told.append(("log", step, values)),
        finish=lambda: told.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, package, fake)
    config = make_config(
        tiny_tree, (f"callbacks.{package}={{project: mine}}", "callbacks.meter={seconds: 0}", "callbacks.preview=null")
    )
    run = new_run(config, load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    add_callbacks(run)
    train(run)
    _, settings = told[0]
    assert (settings["project"], settings["name"], settings["config"]["train"]["pictures"]) == ("mine", "run", 96)
    steps = [entry[1] for entry in told if entry[0] == "log" and "loss" in entry[2]]
    assert steps == list(range(8, 97, 8))
    assert any("test_loss" in entry[2] for entry in told if entry[0] == "log") and told[-1] == ("finish",)


def test_a_package_that_is_not_there_is_named(tiny_tree: dict, picture_folder: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make_config(tiny_tree, ("callbacks.wandb={}",))
    run = new_run(config, load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    with pytest.raises(Failure, match=r"callbacks\.wandb: wandb is not installed; pip install wandb"):
        add_callbacks(run)
