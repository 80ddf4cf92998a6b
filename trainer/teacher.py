"""Learning from a trained network: the teacher, and the objective that folds its guidance into one row.

The first stage of Meng et al. 2023 ("On distillation of guided diffusion models"). What the teacher's guidance costs at
sampling, two rows inside its interval, is paid once, in training.
"""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.schedule import Schedule

from .config import BadSetting, ObjectiveConfig
from .draws import Draws
from .guided import GuidedUNet
from .objective import noised
from .steps import MOST_GUIDANCE
from .weights import initial_weights, load_model, matched

INTERVAL = (0.1, 3.0)
# Options of the objectives that learn from a teacher: the interval of a teacher without w as an input; the largest w.
Interval = tuple[NonNegativeFloat, NonNegativeFloat]
Most = Annotated[float, Field(gt=1, le=1000)]


class Teacher:
    """A trained network that predicts at any w: in one row if w is its input, else in two.

    Args:
        interval: of sigma / alpha, where guidance acts; only for networks without w as an input.
        takes_w: w is an input of `network`.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, null_class: int, interval: tuple[float, float], takes_w: bool
    ) -> None:
        self.network, self.schedule, self._null_class, self._takes_w = network, schedule, null_class, takes_w
        self._first, self._last = (float(schedule.t_of_ratio(ratio)) for ratio in interval)

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        """The guided prediction at x_t: (B, C, H, W), (B,), (B,) int64, (B,) -> (B, C, H, W) float32."""
        if self._takes_w:
            prediction: Tensor = self.network(x, t, labels, w)
            return prediction.float()
        null = torch.full_like(labels, self._null_class)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, null])).float()
        cond, uncond = both.chunk(2)
        acting = torch.where((t >= self._first) & (t <= self._last), w, 1.0).float()
        return uncond + acting[:, None, None, None] * (cond - uncond)


@cache
def load_teacher(
    path: str, student: nn.Module, schedule: Schedule, null_class: int, interval: tuple[float, float]
) -> Teacher:
    """The teacher at `path`, a checkpoint, run or bundle, on the device of `student`; read once.

    A bundle does not say which network it is of: it must be of the student's widths and depths.

    Raises:
        BadSetting: no path.
        Failure: nothing to read there, or a network for other classes or another noise schedule.
    """
    if not path:
        raise BadSetting(
            "objective.teacher: expected a run, checkpoint or bundle to learn from, found none; give --teacher PATH"
        )
    device, folder = next(student.parameters()).device, Path(path)
    if (folder / "bundle.json").is_file():
        bundle, (weights, _) = load_bundle(folder), initial_weights(folder)
        classes, own, network = len(bundle.class_names), bundle.schedule, copy.deepcopy(student)
        takes_w = bundle.guidance_input is not None
        if not takes_w and isinstance(network, GuidedUNet):  # what the student knows of w, its teacher does not
            network.forget_guidance()
        network.load_state_dict(matched(weights, network, folder))
    else:
        model = load_model(folder)
        classes, own, network = len(model.class_names), model.schedule, model.network
        takes_w = isinstance(network, GuidedUNet)
    if (classes, own) != (null_class, schedule):
        problem = f"has {classes} classes and the noise schedule {own}"
        raise Failure(f"{path}: {problem}; the student has {null_class} and {schedule}; take a teacher of the same")
    network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if getattr(student, "_compiled_call_impl", None) is not None:  # train.compile
        network.compile()
    return Teacher(network, schedule, null_class, interval, takes_w)


def draw_guidance(draws: Draws, most: float, device: torch.device) -> Tensor:
    """w of each row: 1 for a tenth of them, else even in ln w up to `most`. (B,) float32."""
    share = (draws.uniform() * 1.1 - 0.1).clamp(min=0)
    return torch.exp(share * math.log(most)).float().to(device)


def distilled_guidance(
    network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
    draws: Draws, *, interval: Interval = INTERVAL, most: Most = MOST_GUIDANCE,
) -> Tensor:  # fmt: skip
    """Squared error to a teacher's guided prediction at a random w (Meng et al. 2023, equation 6)."""
    guide = load_teacher(config.teacher, network, schedule, null_class, tuple(interval))
    quantiles = draws.quantiles().clamp(1e-6, 1 - 1e-6)
    t = schedule.t_of_ratio(np.exp((config.mean + config.std * torch.special.ndtri(quantiles)).numpy()))
    x_t, _ = noised(schedule, pictures, t, draws.normal(pictures.shape[1:]).to(pictures.device))
    w = draw_guidance(draws, most, pictures.device)
    dropped = (draws.uniform() < config.label_dropout).to(labels.device)
    labels, w = torch.where(dropped, null_class, labels), torch.where(dropped, 1.0, w)
    times = torch.from_numpy(t).float().to(x_t.device)
    target = guide.predict(x_t, times, labels, w)
    return F.mse_loss(network(x_t, times, labels, w).float(), target)
