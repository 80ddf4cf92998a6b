"""Presets and overrides; errors name the key."""

import pytest
import torch

from cfgdiff.runtime.errors import BadInput
from cfgdiff.trainer.build import make_network
from cfgdiff.trainer.config import load_preset, make_config, preset_names
from cfgdiff.trainer.optim import rate_factor
from cfgdiff.trainer.registry import bound
from cfgdiff.trainer.unet import ResidualBlock, Stage


@pytest.mark.parametrize("name", ["cifar10-paper", "cifar10-small", "smoke"])
def test_every_preset_is_valid(name: str) -> None:
    assert name in preset_names()
    make_config(load_preset(name))


PAPER = {  # the project report, with ADM's widths for CIFAR-10 (Dhariwal & Nichol 2021; Nichol & Dhariwal 2021)
    "T": 1000, "schedule": "cosine", "prediction": "eps", "timesteps": "uniform", "weighting": "simple",
    "data_std": 1.0,
    "label_dropout": 0.1, "optimiser": "adamw", "lr": 3e-4, "weight_decay": 0.0, "batch": 14, "iterations": 1_000_000,
    "channels": {32: 128, 16: 256, 8: 256, 4: 256}, "blocks a level": 3, "attention": {16, 8, 4},
    "head_channels": 64, "dropout": 0.1,
    "classes": 11, "image": (3, 32, 32),
}  # fmt: skip


def test_the_paper_preset_states_the_paper() -> None:
    config = make_config(load_preset("cifar10-paper"))
    objective, optimiser = config.objective, config.optimiser
    found = {
        "T": config.schedule.T, "schedule": config.schedule.kind, "prediction": objective.prediction,
        "timesteps": objective.timesteps,
        "weighting": objective.weighting, "data_std": objective.data_std, "label_dropout": objective.label_dropout,
        "optimiser": optimiser.name, "lr": optimiser.lr, "weight_decay": optimiser.weight_decay,
        "batch": config.train.batch,
        "iterations": config.train.pictures / config.train.batch,
    }  # fmt: skip
    assert found == {key: PAPER[key] for key in found}
    steps = 100_000
    assert all(
        rate_factor(optimiser, step, step / PAPER["iterations"]) == 1 for step in range(0, PAPER["iterations"], steps)
    )


def test_the_network_that_the_paper_preset_builds_is_the_papers() -> None:
    config, channels, attention = make_config(load_preset("cifar10-paper")), {}, set()
    assert config.network.norm == "group"
    network = make_network(config, PAPER["image"], 10)
    blocks: dict[int, int] = {}

    def seen(stage: Stage, inputs: tuple, output: torch.Tensor) -> None:
        size = output.shape[2]
        channels[size] = (
            max(channels.get(size, 0), output.shape[1]) if stage.block.resample == "none" else channels.get(size, 0)
        )
        if stage.attention is not None:
            attention.add(size)
            assert stage.attention.heads * PAPER["head_channels"] == output.shape[1]
        if stage in list(network.down) and stage.block.resample == "none":
            blocks[size] = blocks.get(size, 0) + 1

    for module in network.modules():
        if isinstance(module, Stage):
            module.register_forward_hook(seen)
    with torch.no_grad():
        assert network(torch.zeros(1, *PAPER["image"]), torch.ones(1), torch.tensor([10])).shape == (1, *PAPER["image"])
    assert channels == PAPER["channels"] and attention == PAPER["attention"]
    assert blocks == dict.fromkeys(PAPER["channels"], PAPER["blocks a level"])
    assert {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)} == {PAPER["dropout"]}
    assert network.label.num_embeddings == PAPER["classes"]
    kinds = [m.resample for m in network.modules() if isinstance(m, ResidualBlock)]
    assert kinds.count("up") == kinds.count("down") == 3 and network.patch == 1


def test_overrides_reach_their_key() -> None:
    config = make_config(load_preset("smoke"), ("train.batch=7", "network.multipliers=[1, 3]"))
    assert config.train.batch == 7 and config.network.multipliers == (1, 3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch=x", "train.batch"), ("train.batches=3", "did you mean 'batch'"),
        ("nonsense", "section.key=value"),
        ("train.batch=0", "train.batch"), ("trains.batch=3", "did you mean 'train'"), ("train.batch=[", "YAML"),
        ("train.image_size=30", "multiple of"),
        ("train.image_size=65", r"^train.image_size must be a multiple of 4 for this network, found 65$"),
        ("objective.weighting=bound",
         r"^objective.weighting=bound is defined on the steps 1 .. T, found lognormal: set objective"),
        ("train.batch=1\n2", r"^'train.batch=1\\n2': expected section.key=value on one line"),
        ("train.batch=2001-99-99", r"^train.batch='2001-99-99': the value is not readable as YAML"),
        ("train.batch=" + "[" * 5000, "not readable as YAML"),
        ("train.batch=" + "9" * 5000, r"train\.batch.*(YAML|less than or equal)"),
        ("train.seed=" + "9" * 40, "train.seed: Input should be less than"),
        ("train.pictures=" + "9" * 400, "train.pictures: Input should be"),
        ("network.channels=" + "4" * 30, "network.channels"), ("train.image_size=" + "4" * 30, "train.image_size"),
        ("network.multipliers=[0]", r"network\.multipliers\.0"),
        ("optimiser.lr=.inf", "optimiser.lr: Input should be a finite number"),
        ("callbacks.ema=3", r"callbacks\.ema: Input should be a valid dictionary"),
        ("train.=3", "train.: Extra inputs"),
        (".=3", r"^config: Extra inputs|^: Extra inputs"), ("train.batch=&a [*a]", "train.batch"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as error:
        make_config(load_preset("smoke"), (override,))
    assert "\n" not in str(error.value)


def test_an_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(BadInput, match=r"cifar10-small.*did you mean 'smoke'"):
        load_preset("smok")


@pytest.mark.parametrize("objective", ["distilled-guidance", "trajectory", "consistency"])
def test_objectives_with_a_teacher_need_a_network_that_takes_w(objective: str) -> None:
    with pytest.raises(BadInput, match=f"objective.name={objective} needs a network that takes w"):
        make_config({"objective": {"name": objective}})
    assert make_config({"objective": {"name": objective}, "network": {"name": "guided-unet"}}).objective.teacher == ""


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("trajectory", {"steps": [0]}),
        ("trajectory", {"steps": []}),
        ("trajectory", {"teacher_steps": 0}),
        ("trajectory", {"feature_weight": -1}),
        ("distilled-guidance", {"most": 1}),
        ("distilled-guidance", {"interval": [-1, 3]}),
        ("consistency", {"halve_every": 0}),
    ],
)
def test_options_of_objectives_are_checked(objective: str, options: dict) -> None:
    with pytest.raises(BadInput, match=f"option '{next(iter(options))}' of the objective '{objective}'"):
        bound("objective", objective, options)
