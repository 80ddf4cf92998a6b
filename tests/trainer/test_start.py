"""A run starts from the weights of another model, or where a checkpoint left it."""

import json
from pathlib import Path

import pytest
import torch

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.build import new_run as create
from cfgdiff.trainer.checkpoint import BEFORE_DECAY, find_checkpoint, read_checkpoint
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.run import Run
from cfgdiff.trainer.start import resume, start_from
from cfgdiff.trainer.weights import load_model


def new_run(tree: dict, data: Path, out: Path) -> Run:
    config = make_config(tree)
    return create(config, load_data(data, config.train.image_size), out, "cfgdiff train", None)


def test_a_kill_on_the_threshold_of_the_decay_does_not_lose_the_checkpoint_from_before_it(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:  # fmt: skip
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.step, run.pictures_seen = 9, 72  # of 96: past the threshold, and no step at a lower rate was done
    run.save()
    assert train(resume(tmp_path / "run", make_config, lambda _: run.data, "again", None))
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / BEFORE_DECAY)[0]["pictures_seen"] == 72


def test_the_network_of_a_run_cannot_change(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.save()
    with pytest.raises(BadInput, match="network of a run cannot change"):
        resume(
            tmp_path / "run", lambda tree: make_config(tree, ("network.channels=32",)), lambda _: run.data, "more", None
        )


def test_init_takes_the_averaged_weights_and_refuses_others(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    first = new_run(tiny_tree, picture_folder, tmp_path / "first")
    train(first)
    second = new_run(tiny_tree, picture_folder, tmp_path / "second")
    start_from(second, tmp_path / "first")
    assert all(
        torch.equal(a, b) for a, b in zip(second.network.parameters(), first.ema.network.parameters(), strict=True)
    )
    assert second.pictures_seen == 0
    train(second)
    source = load_model(tmp_path / "second").provenance["initialised_from"]  # not a path, which says nothing elsewhere
    assert source == load_model(tmp_path / "first").provenance and source["pictures_seen"] == 96
    wider = new_run(
        tiny_tree | {"network": tiny_tree["network"] | {"channels": 32}}, picture_folder, tmp_path / "wider"
    )
    with pytest.raises(Failure, match=r"expected .* of shape .* found"):
        start_from(wider, tmp_path / "first")
    bare = new_run(
        tiny_tree | {"network": tiny_tree["network"] | {"norm": "affine"}}, picture_folder, tmp_path / "bare"
    )
    with pytest.raises(Failure, match=r"has \d+ weights that this network lacks, as .*norm.*; set network.norm=group$"):
        start_from(bare, tmp_path / "first")


def test_checkpoints_from_before_the_choice_of_norm_have_group_normalisation(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:  # fmt: skip
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    train(run)
    before = load_model(tmp_path / "run")
    file = find_checkpoint(tmp_path / "run") / "state.json"
    state = json.loads(file.read_text())
    del state["config"]["network"]["norm"]
    file.write_text(json.dumps(state))
    after, x = load_model(tmp_path / "run"), torch.randn(2, 3, 16, 16)
    given = x, torch.tensor([3.0, 900.0]), torch.tensor([0, 2])
    assert torch.equal(after.network(*given), before.network(*given)) and after.config.network.norm == "group"
    resumed = resume(
        tmp_path / "run", lambda tree: make_config(tree, ("train.pictures=120",)), lambda _: run.data, "more", None
    )
    assert resumed.config.network.norm == "group"
