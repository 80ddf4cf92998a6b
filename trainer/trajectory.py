"""Few evaluations: the network learns to take in one step what a teacher takes in several, on its own path.

Trajectory matching (Zhou et al. 2024, "Simple and fast distillation of diffusion models"): from the state that the
network's last step led to, detached, the teacher takes several small steps, and the network is trained to get there in
one. Each number of steps has timesteps of its own, from which the network knows how far to go.
"""

from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule

from .config import ObjectiveConfig
from .draws import Draws
from .features import feature_distance
from .steps import MOST_GUIDANCE, STEPS, ddim_coefficients, student_timesteps
from .teacher import INTERVAL, Interval, Most, Teacher, draw_guidance, load_teacher

Numbers = Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)]  # of steps, in turn


@torch.no_grad()
def follow(teacher: Teacher, x: Tensor, timesteps: np.ndarray, labels: Tensor, w: Tensor) -> Tensor:
    """Where the teacher gets to from x_t over falling `timesteps`: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    schedule, before = teacher.schedule, None
    for t, s in pairwise(timesteps.tolist()):
        x0 = schedule.to_x0(teacher.predict(x, torch.full_like(w, t), labels, w), x, t)
        guess = x0
        if s > 0:
            h = float(np.log(schedule.ratio(t) / schedule.ratio(s)))
            if before is not None:
                guess = x0 + (x0 - before[0]) * (h / (2 * before[1]))
            before = x0, h
        x = step(schedule, x, guess, t, s)
    return x


def step(schedule: Schedule, x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """DDIM from t to s, for (B, C, H, W)."""
    a, b = ddim_coefficients(schedule, t, s)
    return a * x + b * x0


def trajectory(
    network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int,
    draws: Draws, *, steps: Numbers = STEPS, teacher_steps: Annotated[int, Field(ge=1, le=1000)] = 16,
    interval: Interval = INTERVAL, most: Most = MOST_GUIDANCE, features: str = "",
    feature_weight: NonNegativeFloat = 0.0,
) -> Tensor:  # fmt: skip
    """Mean distance of each of the network's steps to a teacher's state; a training step takes one number of steps."""
    guide = load_teacher(config.teacher, network, schedule, null_class, tuple(interval))
    count = steps[draws.step % len(steps)]
    parts = max(1, round(teacher_steps / count))
    fine = student_timesteps(count, schedule.T, parts)
    w = draw_guidance(draws, most, pictures.device)
    x, losses = draws.normal(pictures.shape[1:]).to(pictures.device), []
    for i in range(count):
        t, s = float(fine[i * parts]), float(fine[(i + 1) * parts])
        target = follow(guide, x, fine[i * parts : (i + 1) * parts + 1], labels, w)
        prediction = network(x, torch.full_like(w, t), labels, w).float()
        reached = step(schedule, x, schedule.to_x0(prediction, x, t), t, s)
        losses.append(F.l1_loss(reached, target))
        x = reached.detach()
    total = torch.stack(losses).sum()
    if feature_weight:
        std = schedule.data_std
        total = total + feature_weight * feature_distance(features, reached * std, target * std)
    return total
