"""Presets and overrides; errors name the key."""

import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.trainer.config import load_preset, make_config, preset_names


@pytest.mark.parametrize("name", ["cifar10-paper", "cifar10-small", "smoke"])
def test_every_preset_is_valid(name: str) -> None:
    assert name in preset_names()
    make_config(load_preset(name))


def test_the_paper_preset_states_the_paper() -> None:
    config = make_config(load_preset("cifar10-paper"))
    assert (config.train.batch, config.train.pictures / config.train.batch) == (14, 1_000_000)
    assert (config.optimiser.name, config.optimiser.lr, config.optimiser.decay_share) == ("adamw", 3e-4, 0)
    assert (config.objective.prediction, config.objective.timesteps, config.objective.data_std) == ("eps", "uniform", 1)
    assert config.objective.label_dropout == 0.1 and config.network.head_channels == 64
    assert (config.schedule.kind, config.schedule.T) == ("cosine", 1000)


def test_overrides_reach_their_key() -> None:
    config = make_config(load_preset("smoke"), ("train.batch=7", "network.multipliers=[1, 3]"))
    assert config.train.batch == 7 and config.network.multipliers == (1, 3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch=x", "train.batch"), ("train.batches=3", "did you mean 'batch'"), ("nonsense", "section.key=value"),
        ("train.batch=0", "train.batch"), ("trains.batch=3", "did you mean 'train'"), ("train.batch=[", "YAML"),
        ("train.image_size=30", "multiple of"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as error:
        make_config(load_preset("smoke"), (override,))
    assert "\n" not in str(error.value)


def test_an_unknown_preset_lists_the_choices() -> None:
    with pytest.raises(BadInput, match=r"cifar10-small.*did you mean 'smoke'"):
        load_preset("smok")
