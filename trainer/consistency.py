"""Few evaluations by consistency: predictions along a teacher's path agree on where it ends (Song et al. 2023).

Consistency distillation with the schedule of Easy Consistency Tuning (Geng et al. 2024): two points of a path begin far
apart and come closer as training proceeds. It is the control for `trajectory`; see docs/results.md for the figures.
"""

import math

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from cfgdiff.runtime.schedule import Schedule

from .config import ObjectiveConfig
from .draws import Draws
from .steps import MOST_GUIDANCE
from .teacher import INTERVAL, Interval, Most, draw_guidance, load_teacher

MEAN, STD = -1.1, 2.0  # of ln(sigma / alpha)
HUBER = 0.06  # c of the pseudo-Huber distance, for a picture of one value; it grows with the root of their number


def earlier(ratio: np.ndarray, halvings: int) -> np.ndarray:
    """The noise level r < t of the other point: r / t = 1 - n(t) / 2^(1 + halvings), n(t) = 1 + 8 sigmoid(-t). (B,)."""
    share = (1 + 8 / (1 + np.exp(ratio))) / 2.0 ** (1 + halvings)
    return ratio * np.clip(1 - share, 0, 1)


def consistency(
    network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
    draws: Draws, *, interval: Interval = INTERVAL, most: Most = MOST_GUIDANCE,
    halve_every: PositiveInt = 200,
) -> Tensor:  # fmt: skip
    """Pseudo-Huber distance of the clean pictures predicted at two points of a teacher's guided path."""
    guide = load_teacher(config.teacher, network, schedule, null_class, tuple(interval))
    quantiles = draws.quantiles().clamp(1e-4, 1 - 1e-4)
    ratio = np.exp((MEAN + STD * torch.special.ndtri(quantiles)).numpy())
    t, r = schedule.t_of_ratio(ratio), schedule.t_of_ratio(earlier(ratio, draws.step // halve_every))
    x_t = schedule.noised(pictures / schedule.data_std, draws.normal(pictures.shape[1:]).to(pictures.device), t)
    w = draw_guidance(draws, most, pictures.device)
    times, before = (torch.from_numpy(value).float().to(x_t.device) for value in (t, r))
    guided = guide.predict(x_t, times, labels, w)
    x_r = schedule.noised(schedule.to_x0(guided, x_t, t), schedule.to_eps(guided, x_t, t), r)  # Euler's step (DDIM)
    clean = schedule.to_x0(network(x_t, times, labels, w).float(), x_t, t)
    with torch.no_grad():
        target = schedule.to_x0(network(x_r, before, labels, w).float(), x_r, r)
    c = HUBER * math.sqrt(clean[0].numel())
    distance = ((clean - target).square().flatten(1).sum(1) + c**2).sqrt() - c
    return (distance / torch.from_numpy(ratio - schedule.ratio(r)).float().to(x_t.device)).mean() / c
