"""Few evaluations by consistency: predictions along a teacher's path agree on where it ends (Song et al. 2023).

Consistency distillation with the schedule of Easy Consistency Tuning (Geng et al. 2024): two points of a path begin far
apart and come closer as training proceeds. It is the control for `trajectory`; see docs/results.md for the figures.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from cfgdiff.runtime.schedule import Schedule

from .config import BadSetting, ObjectiveConfig
from .draws import Draws
from .steps import MOST_GUIDANCE
from .teacher import INTERVAL, draw_guidance, load_teacher

MEAN, STD = -1.1, 2.0  # of ln(sigma / alpha)
HUBER = 0.06  # c of the pseudo-Huber distance, per square root of a picture's values


def earlier(ratio: np.ndarray, halvings: int) -> np.ndarray:
    """The noise level r < t of the other point: r / t = 1 - n(t) / 2^(1 + halvings), n(t) = 1 + 8 sigmoid(-t). (B,)."""
    share = (1 + 8 / (1 + np.exp(ratio))) / 2.0 ** (1 + halvings)
    return ratio * np.clip(1 - share, 0, 1)


def consistency(
    network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
    draws: Draws, *, interval: tuple[float, float] = INTERVAL, most: float = MOST_GUIDANCE, halve_every: int = 200,
) -> Tensor:  # fmt: skip
    """Pseudo-Huber distance of the clean pictures predicted at two points of a teacher's guided path."""
    guide = load_teacher(config.teacher, network, schedule, null_class, tuple(interval))
    quantiles = draws.quantiles().clamp(1e-4, 1 - 1e-4)
    ratio = np.exp((MEAN + STD * torch.special.ndtri(quantiles)).numpy())
    t, r = schedule.t_of_ratio(ratio), schedule.t_of_ratio(earlier(ratio, draws.step // halve_every))
    x_t = schedule.noised(pictures / schedule.data_std, draws.normal(pictures.shape[1:]).to(pictures.device), t)
    w = draw_guidance(draws, most, pictures.device)
    times, before = (torch.from_numpy(value).float().to(x_t.device) for value in (t, r))
    x0 = _x0(schedule, guide.predict(x_t, times, labels, w), x_t, t)
    eps = (x_t - _column(schedule.alpha(t), x_t) * x0) / _column(schedule.sigma(t), x_t)
    x_r = schedule.noised(x0, eps, r)  # Euler's step along the path
    prediction = _x0(schedule, network(x_t, times, labels, w).float(), x_t, t)
    with torch.no_grad():
        target = _x0(schedule, network(x_r, before, labels, w).float(), x_r, r)
    c = HUBER * math.sqrt(prediction[0].numel())
    distance = ((prediction - target).square().flatten(1).sum(1) + c**2).sqrt() - c
    return (distance / torch.from_numpy(ratio - schedule.ratio(r)).float().to(x_t.device)).mean() / c


def _x0(schedule: Schedule, prediction: Tensor, x: Tensor, t: np.ndarray) -> Tensor:
    """The clean picture that v implies, for a t of each row."""
    if schedule.prediction != "v":
        raise BadSetting(
            f"objective.prediction: consistency is written for v, found {schedule.prediction}; set it to v"
        )
    return _column(schedule.alpha(t), x) * x - _column(schedule.sigma(t), x) * prediction


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).float().to(like.device)[:, None, None, None]
