from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer import teacher as teachers
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.guided import GuidedUNet
from cfgdiff.trainer.teacher import Teacher, distilled_guidance, draw_guidance, load_teacher
from cfgdiff.trainer.weights import LoadedModel

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


def test_a_teacher_of_two_rows_guides_inside_its_interval_and_nowhere_else(batch: Batch) -> None:
    teacher = Teacher(Classes(), Schedule(), 2, (LO, HI), takes_w=False)
    answer = teacher.predict(batch.x, batch.t, batch.labels, batch.w)[:, 0, 0, 0]
    cond = torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert answer.tolist() == [1.0, -1 + 4.0 * (cond[1].item() + 1), -1 + 1.5 * 2.0, 2.0]


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


def student_of(model: LoadedModel) -> GuidedUNet:
    """An untrained network of the model's widths that takes w, with something learned of w."""
    student = GuidedUNet(model.config.network, model.image_shape, len(model.class_names))
    nn.init.ones_(student.strength.bias)
    return student


def test_a_bundle_teaches_as_its_run_does(small_bundle: object, model: LoadedModel) -> None:
    student, classes = student_of(model), len(model.class_names)
    teacher = load_teacher(str(small_bundle.path), student, model.schedule, classes, (LO, HI))
    x = torch.randn(3, *model.image_shape, generator=torch.Generator().manual_seed(0))
    t, labels, w = torch.tensor([100.0, 500.0, 995.0]), torch.tensor([0, 1, 2]), torch.tensor([3.0, 2.0, 8.0])
    expected = Teacher(model.network, model.schedule, classes, (LO, HI), takes_w=False).predict(x, t, labels, w)
    torch.testing.assert_close(teacher.predict(x, t, labels, w), expected, atol=2e-3, rtol=2e-3)  # float16 weights
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_a_teacher_is_needed_and_must_fit(small_bundle: object, model: LoadedModel, tmp_path: Path) -> None:
    student, path, classes = student_of(model), str(small_bundle.path), len(model.class_names)
    with pytest.raises(BadInput, match=r"objective\.teacher: expected a run"):
        load_teacher("", student, model.schedule, classes, (LO, HI))
    with pytest.raises(Failure, match="no checkpoint"):
        load_teacher(str(tmp_path), student, model.schedule, classes, (LO, HI))
    with pytest.raises(Failure, match="has 3 classes"):
        load_teacher(path, student, Schedule("linear"), classes, (LO, HI))
    wider = GuidedUNet(model.config.network.model_copy(update={"channels": 64}), model.image_shape, classes)
    with pytest.raises(Failure, match=r"expected .* of shape"):
        load_teacher(path, wider, model.schedule, classes, (LO, HI))
