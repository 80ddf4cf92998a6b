"""The loops of the comparison train, in the same precision; what is timed is what took its time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
pytest.importorskip("accelerate", reason="needs the dev extra: pip install 'cfgdiff[dev]'")

import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner

from cfgdiff.benchmarks import training
from cfgdiff.benchmarks.timing import Case, interleaved
from cfgdiff.benchmarks.training import configs, our_steps, report, steps_of, their_steps
from cfgdiff.cli.bench import bench
from cfgdiff.trainer import build
from cfgdiff.trainer.config import Config, load_preset, make_config
from cfgdiff.trainer.data import PictureSet, load_data
from cfgdiff.trainer.optim import fast_bfloat16


@pytest.fixture
def setting(write_cifar: Callable[..., np.ndarray], tmp_path: Path) -> tuple[Config, PictureSet]:
    """A small network and 100 pictures."""
    write_cifar(tmp_path, 20)
    overrides = ("network.channels=16", "network.head_channels=16", "train.batch=8", "callbacks.preview=null")
    return make_config(load_preset("smoke"), overrides), load_data(tmp_path, 32)


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision a process."""
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.filterwarnings("ignore")  # of accelerate and diffusers
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_loops_change_the_weights_in_the_same_precision(
    setting: tuple[Config, PictureSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    if precision == "bfloat16" and not fast_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no instructions for bfloat16: run it on one with AVX512_BF16 or AMX")
    config, data = make_config(setting[0].model_dump(), (f"train.precision={precision}",)), setting[1]
    made, seen, make = [], list[torch.dtype](), training.make_network

    def watched(*args: Any) -> torch.nn.Module:
        made.append(make(*args))
        made[-1].stem.register_forward_hook(
            lambda _module, _inputs, answer: seen.append(answer.dtype) if answer.requires_grad else None
        )
        return made[-1]

    monkeypatch.setattr(training, "make_network", watched)
    monkeypatch.setattr(build, "make_network", watched)
    loop = their_steps(config, data)
    next(loop)
    before = made[0].head.weight.detach().clone()
    for _ in range(14):  # more than an epoch
        next(loop)
    assert not torch.equal(made[0].head.weight, before)
    ours = our_steps(config, data, tmp_path / "run")
    for _ in range(3):
        next(ours)
    assert len(made) == 2 and seen == [getattr(torch, precision)] * 18


def test_the_settings_are_the_presets_but_for_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(training, "fast_bfloat16", lambda _, fast=fast: fast)
        ours, grouped = configs("smoke", ("network.norm=affine", "train.seed=3"), "auto", 16)
        assert (ours.network.norm, grouped.network.norm) == ("affine", "group")
        assert ours.train == grouped.train and (ours.train.batch, ours.train.seed) == (16, 3)
        assert ours.train.precision == ("bfloat16" if fast else "float32")
    assert configs("smoke", (), "float32", None)[0].train.batch == make_config(load_preset("smoke")).train.batch


def test_every_loop_and_the_ratios_of_the_first_to_the_others_are_told() -> None:
    cases = [
        Case("cfgdiff", 8, [1.0, 2.0]),
        Case("accelerate", 8, [2.0, 8.0]),
        Case("cfgdiff, group norm", 8, [0.5, 1.0]),
    ]
    assert report({case.name: case for case in cases}, 2).splitlines() == [
        "cfgdiff                    5.3 pictures/s  (median of 2; 4.0 .. 8.0)",
        "accelerate                 1.6 pictures/s  (median of 2; 1.0 .. 4.0)",
        "cfgdiff, group norm       10.7 pictures/s  (median of 2; 8.0 .. 16.0)",
        "cfgdiff / accelerate: 3.00  (2.00 .. 4.00)",
        "cfgdiff / cfgdiff, group norm: 0.50  (0.50 .. 0.50)",
    ]


@pytest.mark.filterwarnings("ignore")  # of accelerate and diffusers
def test_one_call_compares_all_three_loops(
    setting: tuple[Config, PictureSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    words = "--preset smoke --set network.channels=16 --set network.norm=affine --precision float32 --batch 4"
    made = CliRunner().invoke(
        bench,
        ["training", "--data", str(tmp_path), *words.split(), "--steps", "1", "--rounds", "1"],
        catch_exceptions=False,
    )
    first, *lines = made.stdout.splitlines()
    assert first == f"smoke, network.norm=affine, float32, batch 4, {torch.get_num_threads()} threads"
    begins = [
        "cfgdiff ",
        "accelerate ",
        "cfgdiff, group norm ",
        "cfgdiff / accelerate: ",
        "cfgdiff / cfgdiff, group norm: ",
    ]
    assert len(lines) == 5 and all(line.startswith(begin) for line, begin in zip(lines, begins, strict=True))


def test_each_loop_is_timed_in_turn() -> None:
    order: list[str] = []

    def loop(name: str) -> Iterator[None]:
        while True:
            order.append(name)
            yield

    found = interleaved({name: steps_of(loop(name), 2) for name in ("one", "other")}, rounds=3)
    assert order == ["one", "one", "other", "other"] * 4
    assert len(found["one"].seconds) == 3
