"""Both loops of the comparison train; what is timed is what took its time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
pytest.importorskip("accelerate", reason="needs the dev extra: pip install 'cfgdiff[dev]'")

import torch

from cfgdiff.benchmarks import training
from cfgdiff.benchmarks.timing import interleaved
from cfgdiff.benchmarks.training import our_steps, steps_of, their_steps
from cfgdiff.trainer.config import Config, load_preset, make_config
from cfgdiff.trainer.data import PictureSet, load_data


@pytest.fixture
def setting(write_cifar: Callable[..., np.ndarray], tmp_path: Path) -> tuple[Config, PictureSet]:
    """A small network and 100 pictures."""
    write_cifar(tmp_path, 20)
    overrides = ("network.channels=16", "network.head_channels=16", "train.batch=8", "callbacks.preview=null")
    return make_config(load_preset("smoke"), overrides), load_data(tmp_path, 32)


@pytest.mark.filterwarnings("ignore")  # of accelerate and diffusers
def test_both_loops_change_the_weights(setting: tuple[Config, PictureSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], training.make_network
    monkeypatch.setattr(training, "make_network", lambda *args: made.append(make(*args)) or made[-1])
    loop = their_steps(*setting)
    next(loop)
    before = made[0].head.weight.detach().clone()
    for _ in range(14):  # more than an epoch
        next(loop)
    assert not torch.equal(made[0].head.weight, before)
    ours = our_steps(*setting, tmp_path / "run")
    for _ in range(3):
        next(ours)


def test_each_loop_is_timed_in_turn() -> None:
    order: list[str] = []

    def loop(name: str) -> Iterator[None]:
        while True:
            order.append(name)
            yield

    found = interleaved({name: steps_of(loop(name), 2) for name in ("one", "other")}, rounds=3)
    assert order == ["one", "one", "other", "other"] * 4
    assert len(found["one"].seconds) == 3
