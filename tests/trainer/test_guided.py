from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer import guided
from cfgdiff.trainer import teacher as teachers
from cfgdiff.trainer.config import NetworkConfig, ObjectiveConfig
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.guided import GuidedUNet, guidance_embedding
from cfgdiff.trainer.teacher import Teacher, distilled_guidance, draw_guidance, load_teacher
from cfgdiff.trainer.unet import UNet

SMALL = NetworkConfig(norm="affine", channels=8, multipliers=(1,), blocks=1, attention=(), patch=2)
LO, HI = 0.1, 3.0


class Classes(nn.Module):
    """Answers with the class's number + 1 everywhere; the null class, 2, with -1."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        value = torch.where(label == 2, -1.0, label + 1.0)
        return value[:, None, None, None].expand_as(x)


@dataclass
class Batch:
    x: Tensor
    t: Tensor
    labels: Tensor
    w: Tensor


@pytest.fixture
def batch() -> Batch:
    ratio = np.array([0.05, 0.5, 2.0, 10.0])
    t = torch.from_numpy(Schedule().t_of_ratio(ratio)).float()
    return Batch(torch.zeros(4, 3, 8, 8), t, torch.tensor([0, 1, 0, 1]), torch.tensor([4.0, 4.0, 1.5, 4.0]))


def unzeroed(network: nn.Module) -> nn.Module:
    """With all weights drawn: layers that start at zero would hide what stands before them."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1
    return network


def test_a_teacher_of_two_rows_guides_inside_its_interval_and_nowhere_else(batch: Batch) -> None:
    teacher = Teacher(Classes(), Schedule(), 2, (LO, HI), takes_w=False)
    answer = teacher.predict(batch.x, batch.t, batch.labels, batch.w)[:, 0, 0, 0]
    cond = torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert answer.tolist() == [1.0, -1 + 4.0 * (cond[1].item() + 1), -1 + 1.5 * 2.0, 2.0]


def test_a_guided_network_starts_as_the_one_without_w_and_w_1_is_that_for_good(batch: Batch) -> None:
    network = GuidedUNet(SMALL, (3, 8, 8), 2)
    unzeroed(network)
    plain = UNet(SMALL, (3, 8, 8), 2)
    plain.load_state_dict(
        {name: value for name, value in network.state_dict().items() if not name.startswith("strength.")}
    )
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = plain(x, batch.t, batch.labels)
    assert torch.equal(network(x, batch.t, batch.labels), expected)
    nn.init.zeros_(network.strength.weight)
    nn.init.zeros_(network.strength.bias)
    torch.testing.assert_close(network(x, batch.t, batch.labels, batch.w), expected)
    unzeroed(network)
    nn.init.zeros_(network.strength.bias)
    torch.testing.assert_close(network(x, batch.t, batch.labels, torch.ones(4)), expected)
    assert not torch.allclose(network(x, batch.t, batch.labels, batch.w), expected)


def test_the_embedding_tells_every_w_apart() -> None:
    w = torch.linspace(1, 8, 60)
    waves = guidance_embedding(w)
    distances = torch.cdist(waves, waves) + torch.eye(60) * 9
    assert waves.shape == (60, 2 * guided.WAVES)
    assert not guidance_embedding(torch.ones(1)).any()
    assert distances.min() > 0.1


def test_w_is_drawn_even_in_its_logarithm_and_a_tenth_is_one() -> None:
    w = draw_guidance(Draws(0, 0, 20_000), 8.0, torch.device("cpu"))
    assert (w == 1).float().mean().item() == pytest.approx(0.1 / 1.1, abs=0.01)
    assert (w < 8**0.5).float().mean().item() == pytest.approx(0.6 / 1.1, abs=0.01)
    assert 7.9 < w.max() <= 8


def student(answer: Teacher) -> nn.Module:
    """A network that takes w and answers as a teacher does."""

    class Student(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
            return answer.predict(x, t, label, w)

    return Student()


def test_the_loss_is_zero_for_a_network_that_answers_as_its_teacher_and_the_square_of_what_it_is_off_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = Teacher(Classes(), Schedule(), 2, (LO, HI), takes_w=False)
    monkeypatch.setattr(teachers, "load_teacher", lambda *_: teacher)
    config, pictures, labels = ObjectiveConfig(label_dropout=0.5), torch.zeros(64, 3, 8, 8), torch.arange(64) % 2

    def loss(network: nn.Module) -> float:
        return distilled_guidance(network, config, Schedule(), pictures, labels, 2, Draws(0, 0, 64)).item()

    class Off(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return teacher.predict(*args) + 0.5

    assert loss(student(teacher)) == 0
    assert loss(Off()) == pytest.approx(0.25)


def test_a_teacher_is_needed_and_must_know_the_classes() -> None:
    network = GuidedUNet(SMALL, (3, 8, 8), 2)
    with pytest.raises(BadInput, match="teacher"):
        load_teacher("", network, Schedule(), 2, (LO, HI))
    with pytest.raises(Failure, match="none"):
        load_teacher("none", network, Schedule(), 2, (LO, HI))
