"""Few evaluations: the network learns to take in one step what a teacher takes in several, on the path that it takes itself.

Trajectory matching (Zhou et al. 2024, "Simple and fast distillation of diffusion models"): from the state that the network's own last step
led to, detached, the teacher goes on with several small steps, and the network is trained to land there with one. Each number of steps has
timesteps of its own; from them the network knows how far to go.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule

from .config import ObjectiveConfig
from .draws import Draws
from .features import feature_distance
from .guided import MOST_GUIDANCE, Teacher, draw_guidance, is_compiled, load_teacher

POWER = 1.5  # timesteps fall as 1 - (i / N)^POWER, close to those that fit-steps finds


def student_timesteps(steps: int, T: int, parts: int = 1) -> np.ndarray:  # noqa: N803
    """The timesteps of N steps, each in `parts`, falling to 0: (N parts + 1,).

    Those of different N are nowhere alike, also not where they start: the network sees t alone, and the start of 4 steps asks for another
    answer than that of 1. All begin where nothing of a picture is left.
    """
    u = np.arange(steps * parts + 1) / (steps * parts)
    start = T * (1 - 0.004 * (steps - 1)) if steps > 1 else float(T)
    return start * (1 - u**POWER)


def step(schedule: Schedule, x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
    """DDIM from t to s (Song et al. 2021, equation 12 without noise)."""
    ratio = float(schedule.sigma(s) / schedule.sigma(t)) if s > 0 else 0.0
    return ratio * x + (float(schedule.alpha(s)) - ratio * float(schedule.alpha(t)) if s > 0 else 1.0) * x0


@torch.no_grad()
def follow(teacher: Teacher, x: Tensor, timesteps: np.ndarray, labels: Tensor, w: Tensor) -> Tensor:
    """Where the teacher gets to from x_t over falling `timesteps`: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    schedule, before = teacher.schedule, None
    for t, s in pairwise(timesteps.tolist()):
        x0 = to_x0(schedule, teacher.predict(x, torch.full_like(w, t), labels, w), x, t)
        guess = x0
        if s > 0:
            h = float(np.log(schedule.ratio(t) / schedule.ratio(s)))
            if before is not None:
                guess = x0 + (x0 - before[0]) * (h / (2 * before[1]))
            before = x0, h
        x = step(schedule, x, guess, t, s)
    return x


def to_x0(schedule: Schedule, prediction: Tensor, x: Tensor, t: float) -> Tensor:
    """As `Schedule.to_x0`, for tensors."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    if schedule.prediction == "v":
        return alpha * x - sigma * prediction
    return prediction if schedule.prediction == "x0" else (x - sigma * prediction) / alpha


def trajectory(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor, null_class: int, draws: Draws,
               *, teacher: str = "", steps: tuple[int, ...] = (1, 2, 3, 4), teacher_steps: int = 16, interval: tuple[float, float] = (0.1, 3.0),
               most: float = MOST_GUIDANCE, features: str = "", feature_weight: float = 0.0) -> Tensor:  # fmt: skip
    """Distance of the network's steps to where a teacher gets to, for one number of steps after the other."""
    guide = load_teacher(str(teacher), str(pictures.device), null_class, tuple(interval), is_compiled(network))
    count = steps[draws.step % len(steps)]
    parts = max(1, round(teacher_steps / count))
    fine = student_timesteps(count, schedule.T, parts)
    w = draw_guidance(draws, most, pictures.device)
    x, losses = draws.normal(pictures.shape[1:]).to(pictures.device), []
    for i in range(count):
        t, s = fine[i * parts], fine[(i + 1) * parts]
        target = follow(guide, x, fine[i * parts : (i + 1) * parts + 1], labels, w)
        prediction = network(x, torch.full_like(w, t), labels, w).float()
        reached = step(schedule, x, to_x0(schedule, prediction, x, t), t, s)
        losses.append(F.l1_loss(reached, target))
        x = reached.detach()
    total = torch.stack(losses).sum()
    if feature_weight:
        std = schedule.data_std
        total = total + feature_weight * feature_distance(features, reached * std, target * std)
    return total
