"""Transforms against torch's own flips, rotations and shifts; a network that sees them trains with and without."""

import math
from pathlib import Path

import pytest
import torch

from cfgdiff.trainer.augment import LABELS, AugmentedUNet, draw_labels, transform
from cfgdiff.trainer.build import new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.start import start_from


def told(**parts: float) -> torch.Tensor:
    names = ("flip", "scale", "cos", "sin", "stretch_x", "stretch_y", "shift_x", "shift_y")
    assert len(names) == LABELS
    return torch.tensor([[parts.get(name, 0.0) for name in names]])


COARSE = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
PICTURE = torch.nn.functional.interpolate(COARSE, 16, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, PICTURE),
        ({"flip": 1.0}, PICTURE.flip(2)),
        ({"cos": -1.0, "sin": 1.0}, PICTURE.rot90(-1, (2, 3))),
        ({"cos": -2.0, "sin": 0.0}, PICTURE.flip(2, 3)),
    ],
)
def test_flips_and_right_angles(parts: dict, expected: torch.Tensor) -> None:
    torch.testing.assert_close(transform(PICTURE, told(**parts)), expected, rtol=0, atol=1e-4)


def test_a_shift_moves_the_picture_by_its_share() -> None:
    moved = transform(PICTURE, told(shift_x=0.25, shift_y=-0.125))
    torch.testing.assert_close(moved[:, :, :-2, 4:], PICTURE[:, :, 2:, :-4], rtol=0, atol=1e-4)


def centred_blob(width: float, height: float) -> torch.Tensor:
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 32 - 1] * 2, indexing="ij")
    return (2 * torch.exp(-0.5 * ((x / width) ** 2 + (y / height) ** 2)) - 1)[None, None]


@pytest.mark.parametrize(
    ("parts", "width", "height"),
    [
        ({"scale": 0.5}, 2**0.5, 2**0.5),
        ({"stretch_x": 0.5}, 2**0.5, 2**-0.5),
        ({"stretch_x": -0.5}, 2**-0.5, 2**0.5),
    ],
)
def test_scale_and_stretch_make_a_blob_wider(parts: dict, width: float, height: float) -> None:
    found = transform(centred_blob(0.15, 0.15), told(**parts))
    torch.testing.assert_close(found, centred_blob(0.15 * width, 0.15 * height), rtol=0, atol=0.03)


def test_every_kind_is_there_as_often_as_asked() -> None:
    n, p = 20_000, 0.12
    labels = draw_labels(Draws(0, 0, n), p)
    bound = 4 * (p * (1 - p) / n) ** 0.5
    assert (labels[:, 0] == 1).double().mean().item() == pytest.approx(p / 2, abs=bound)
    for column in range(1, LABELS):
        assert (labels[:, column] != 0).double().mean().item() == pytest.approx(p, abs=bound)
    assert labels[labels[:, 1] != 0, 1].std().item() == pytest.approx(0.2, rel=0.06)
    assert not draw_labels(Draws(0, 0, 100), 0.0).any()
    angles = torch.atan2(labels[:, 3], labels[:, 2] + 1)[labels[:, 3] != 0]
    assert angles.abs().max() > 0.99 * math.pi and abs(angles.mean().item()) < 0.15


def test_it_trains_and_generates_without_being_told(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    tiny_tree["network"]["name"], tiny_tree["objective"]["name"] = "augmented-unet", "augmented"
    config = make_config(tiny_tree, ("objective.options={probability: 0.9}", "objective.weighting=learned"))
    run = new_run(config, load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    train(run)
    network = run.network
    assert isinstance(network, AugmentedUNet) and network.loss_weight.series.any()
    x, t, label = torch.randn(2, 3, 16, 16), torch.full((2,), 500.0), torch.tensor([0, 1])
    with torch.no_grad():
        plain, zero, moved = (
            network.eval()(x, t, label, a) for a in (None, torch.zeros(2, LABELS), told(flip=1.0).expand(2, -1))
        )
    assert torch.equal(plain, zero) and not torch.equal(plain, moved)


def test_it_starts_from_weights_of_a_network_without_transforms(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    plain = new_run(make_config(tiny_tree), load_data(picture_folder, 16), tmp_path / "plain", "cfgdiff train")
    plain.save()
    tiny_tree["network"]["name"], tiny_tree["objective"]["name"] = "augmented-unet", "augmented"
    run = new_run(make_config(tiny_tree), load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    start_from(run, tmp_path / "plain")
    for name, value in plain.ema.network.state_dict().items():
        assert torch.equal(run.network.state_dict()[name], value), name
