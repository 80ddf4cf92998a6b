"""A super-resolution stage: what its network and objective see, its settings, and that it learns from the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cfgdiff.runtime import generate
from cfgdiff.runtime.bundle import Defaults, Model
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.runtime.upscale import condition, reduced
from cfgdiff.trainer.build import add_callbacks, make_network, new_run
from cfgdiff.trainer.config import ObjectiveConfig, load_preset, make_config, preset_names
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.engine_torch import TorchEngine
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.registry import bound
from cfgdiff.trainer.steps import sampling_of
from cfgdiff.trainer.super_resolution import SuperResolutionUNet, super_resolution

PARTS = {"network": "super-resolution-unet", "objective": "super-resolution"}
SIZES = {
    "small-64": 64,
    "small-128": 128,
    "cifar10-16": 16,
    "sr-16-32": 32,
    "sr-32-64": 64,
    "sr-64-128": 128,
    "smoke-sr": 32,
}


@pytest.fixture
def stage_tree(tiny_tree: dict) -> dict:
    for section, name in PARTS.items():
        tiny_tree[section]["name"] = name
    return tiny_tree


@pytest.mark.parametrize("name", SIZES)
def test_the_presets_for_other_sizes_build_networks_of_them(name: str) -> None:
    config = make_config(load_preset(name))
    size = SIZES[name]
    assert name in preset_names() and config.train.image_size == size
    with torch.device("meta"):
        network = make_network(config, (3, size, size), 10)
        x, t, label = torch.zeros(2, 3, size, size), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        further = (x, t) if config.network.name == PARTS["network"] else ()
        assert network(x, t, label, *further).shape == x.shape


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("network.name=unet", "need each other, found unet and super-resolution: set both"),
        ("objective.name=simple", "need each other, found super-resolution-unet and simple: set both"),
        ("train.image_size=36", "train.image_size must be a multiple of 8, the factor of objective.options, found 36"),
    ],
)
def test_settings_that_contradict_each_other_are_named(stage_tree: dict, override: str, expected: str) -> None:
    stage_tree["objective"]["options"] = {"factor": 8}
    with pytest.raises(BadInput, match=expected):
        make_config(stage_tree, (override,))


@pytest.mark.parametrize("options", [{"factor": 3}, {"noise": 1.5}, {"noise": -0.1}])
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(BadInput, match=f"option '{next(iter(options))}' of the objective 'super-resolution'"):
        bound("objective", "super-resolution", options)


class Recorder(torch.nn.Module):
    """Keeps what the objective gives a network, and answers with x_t."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        self.label, self.inputs = label, inputs
        return x


def test_the_objective_gives_the_reduced_picture_at_random_levels_of_noise() -> None:
    network, schedule, n = Recorder(), Schedule(data_std=0.5), 4096
    pictures = torch.rand(1, 3, 4, 4).expand(n, -1, -1, -1) * 2 - 1
    labels = torch.zeros(n, dtype=torch.int64)
    super_resolution(
        network, ObjectiveConfig(label_dropout=0.1), schedule, pictures, labels, 3, Draws(0, 5, n), noise=0.5
    )
    picture, s = network.inputs
    assert s.min() >= 0 and s.max() < 500 and s.mean().item() == pytest.approx(250, abs=10)
    assert (network.label == 3).double().mean().item() == pytest.approx(0.1, abs=0.02)  # the null class, as before
    plain = condition(reduced(pictures, 2), torch.zeros(n, 3, 2, 2), s.double().numpy(), schedule, 2)
    apart, sigma = (picture - plain)[:, :, 0, 0], torch.from_numpy(schedule.sigma(s.double().numpy()))
    corner = 1.0 * apart.double() / sigma[:, None]  # the corner is the low picture's own pixel, of unit noise
    assert corner.mean().item() == pytest.approx(0, abs=0.05) and corner.var().item() == pytest.approx(1, abs=0.05)


def test_without_noise_the_smaller_picture_is_clean() -> None:
    network, pictures = Recorder(), torch.rand(8, 3, 4, 4) * 2 - 1
    labels = torch.zeros(8, dtype=torch.int64)
    super_resolution(network, ObjectiveConfig(), Schedule(), pictures, labels, 3, Draws(0, 5, 8), noise=0.0)
    expected = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear"
    )
    torch.testing.assert_close(network.inputs[0], expected, rtol=0, atol=1e-6)
    assert not network.inputs[1].any()


def test_a_stage_trains_previews_and_enlarges(stage_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    config = make_config(stage_tree, ("train.pictures=320", "train.precision=float32"))
    data = load_data(picture_folder, 16)
    run = new_run(config, data, tmp_path / "run", "cfgdiff train")
    before = run.held_out_errors()
    add_callbacks(run)
    assert train(run) and before is not None and run.test_loss is not None and run.test_loss < before[1].mean()
    assert isinstance(run.network, SuperResolutionUNet)
    assert len(list((tmp_path / "run" / "previews").glob("*.png"))) == 1
    known = sampling_of(config)["condition"]
    assert (known.factor, known.noise, known.most, known.stage) == (2, 100.0, 500.0, 1)
    model = Model("sr", data.class_names, (3, 16, 16), config.schedule, Defaults("ddim", 4, 2.0, None), condition=known)
    low = np.rint(reduced(data.pictures[:6].astype(np.float64), 2)).astype(np.uint8).transpose(0, 2, 3, 1)
    engine = TorchEngine(run.predict, run.null_class)
    enlarged, again, other = (
        np.concatenate([part for _, part in generate(engine, model, [0] * 6, low=pictures, batch=batch)])
        for pictures, batch in ((low, 6), (low, 4), (255 - low, 6))
    )
    assert enlarged.shape == (6, 16, 16, 3)
    assert np.abs(enlarged.astype(int) - again).max() <= 1  # the noise of a picture depends on no other
    assert np.abs(enlarged.astype(int) - other).mean() > 20  # the smaller picture is what it enlarges
