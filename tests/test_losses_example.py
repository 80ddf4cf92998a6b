"""examples/losses.py against closed forms, with a network that answers a constant for each class."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfgdiff.trainer import objective, registry
from cfgdiff.trainer.config import Config, ObjectiveConfig
from cfgdiff.trainer.draws import Draws

B, NULL, ANSWERS = 8, 2, torch.tensor([0.3, -0.2, 0.1])
CONFIG = ObjectiveConfig(data_std=0.5, timesteps="lognormal", label_dropout=0.5)


class Constant(torch.nn.Module):
    """Predicts the same number everywhere, one for each class."""

    def forward(self, x: Any, t: Any, label: Any) -> Any:
        return ANSWERS[label][:, None, None, None].expand_as(x)


@pytest.fixture(scope="module")
def losses() -> Any:
    spec = importlib.util.spec_from_file_location("losses", Path(__file__).parents[1] / "examples" / "losses.py")
    assert spec and spec.loader
    module, added = importlib.util.module_from_spec(spec), dict(registry._added)
    spec.loader.exec_module(module)
    registry._added.clear()
    registry._added.update(added)
    return module


@pytest.fixture
def batch() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, 3, 4, 4, generator=generator) * 2 - 1, torch.arange(B) % 2


def schedule() -> Any:
    return Config(objective=CONFIG).schedule


def drawn(batch: tuple[Any, Any]) -> tuple[np.ndarray, Any, Any, Any]:
    """t, the target and the labels that the step of `Draws(0, 0, B)` draws, and the predictions."""
    draws = Draws(0, 0, B)
    t = objective.sample_timesteps(CONFIG, schedule(), draws)
    _, target = objective.noised(schedule(), batch[0], t, draws.normal((3, 4, 4)))
    kept = objective.drop_labels(batch[1], NULL, CONFIG.label_dropout, draws)
    return t, target, kept, Constant()(batch[0], None, kept)


def eps() -> Any:
    """The noise of that step."""
    draws = Draws(0, 0, B)
    draws.quantiles()
    return draws.normal((3, 4, 4))


def value(losses: Any, batch: tuple[Any, Any], **options: Any) -> float:
    return float(losses.extended(Constant(), CONFIG, schedule(), *batch, NULL, Draws(0, 0, B), **options))


def test_without_its_terms_it_is_the_simple_loss(losses: Any, batch: tuple[Any, Any]) -> None:
    simple = objective.loss(Constant(), CONFIG, schedule(), *batch, NULL, Draws(0, 0, B))
    assert value(losses, batch) == pytest.approx(simple.item(), rel=1e-6)


def test_contrast_is_the_distance_from_another_target(losses: Any, batch: tuple[Any, Any]) -> None:
    _, target, _, prediction = drawn(batch)
    others = target[[B - 1, *range(B - 1)]]
    expected = (prediction - target).square().mean() - 0.2 * (prediction - others).square().mean()
    assert value(losses, batch, contrast=0.2) == pytest.approx(expected.item(), rel=1e-5)


def test_guided_targets_move_only_classes_inside_the_interval(losses: Any, batch: tuple[Any, Any]) -> None:
    t, target, kept, prediction = drawn(batch)
    inside = torch.from_numpy((schedule().ratio(t) > 0.1) & (schedule().ratio(t) < 3)).float()
    assert 0 < inside.sum() < B and (kept == NULL).any()
    moved = (ANSWERS[kept] - ANSWERS[NULL]) * (1 - 1 / 4) * inside  # w = 4; rows without a class move by 0
    expected = (prediction - (target + moved[:, None, None, None])).square().mean()
    assert value(losses, batch, guided=4.0) == pytest.approx(expected.item(), rel=1e-5)


def test_the_feature_loss_counts_what_noise_leaves_visible(
    losses: Any, batch: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(losses, "feature_distance", lambda path, a, b: seen.append((path, a, b)) or torch.tensor(2.0))
    assert value(losses, batch, feature_weight=0.1, features="F") == pytest.approx(value(losses, batch) + 0.2)
    ((path, implied, wanted),) = seen
    t, _, _, prediction = drawn(batch)
    x_t, _ = objective.noised(schedule(), batch[0], t, eps())
    x0 = schedule().to_x0(prediction, x_t, t) * CONFIG.data_std
    share = torch.from_numpy(schedule().alpha_bar(t)).float()[:, None, None, None]
    assert path == "F" and torch.equal(wanted, batch[0])
    torch.testing.assert_close(implied - wanted, share * (x0 - batch[0]), rtol=0, atol=1e-5)
