"""An example of a plugin: further terms for the loss, each off by default. docs/results.md has what they were worth.

    cfgdiff train --preset cifar10-small --plugin examples/losses.py --data DATA --out runs/contrast \\
        --set objective.name=extended --set "objective.options={contrast: 0.05}"
"""

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from cfgdiff.runtime.schedule import Schedule
from cfgdiff.trainer.config import ObjectiveConfig
from cfgdiff.trainer.draws import Draws
from cfgdiff.trainer.features import feature_distance
from cfgdiff.trainer.objective import drop_labels, noised, sample_timesteps
from cfgdiff.trainer.registry import register


def rows(values: np.ndarray, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1) float32 on the device of `like`."""
    return torch.from_numpy(values).float().to(like.device)[:, None, None, None]


@register("objective", "extended")
def extended(network: nn.Module, config: ObjectiveConfig, schedule: Schedule, pictures: Tensor, labels: Tensor,
             null_class: int, draws: Draws, *, feature_weight: NonNegativeFloat = 0.0, features: str = "",
             contrast: NonNegativeFloat = 0.0, guided: PositiveFloat = 1.0) -> Tensor:  # fmt: skip
    """L_simple with a feature loss, a contrastive term or guided targets.

    feature_weight: of AlexNet's distance between the picture and the x0 that the prediction implies, both mixed with
        the picture as noise hides it: weighted with alpha_bar, so that high noise counts little.
    contrast: contrastive flow matching (Stoica et al. 2025, equation 7): away from the target of another picture.
    guided: w of guidance in the target itself (Tang et al. 2025), inside sigma / alpha 0.1 .. 3. The network then
        predicts at w = 1 what guidance would: cond = target + (1 - 1 / w) (cond - uncond) means that cond is
        uncond + w (target - uncond).
    """
    t = sample_timesteps(config, schedule, draws)
    eps = draws.normal(pictures.shape[1:]).to(pictures.device, non_blocking=True)
    x_t, target = noised(schedule, pictures, t, eps)
    kept = drop_labels(labels, null_class, config.label_dropout, draws)
    when = torch.from_numpy(t).float().to(x_t.device)
    wanted = target
    if guided != 1:
        with torch.no_grad():
            cond = network(x_t, when, kept).float()
            uncond = network(x_t, when, torch.full_like(kept, null_class)).float()
        ratio = schedule.ratio(t)
        wanted = target + rows((1 - 1 / guided) * ((ratio > 0.1) & (ratio < 3)), x_t) * (cond - uncond)
    prediction = network(x_t, when, kept).float()
    value = F.mse_loss(prediction, wanted)
    if contrast:
        value = value - contrast * F.mse_loss(prediction, target.roll(1, 0))
    if feature_weight:
        share, std = rows(schedule.alpha_bar(t), x_t), schedule.data_std
        implied = schedule.to_x0(prediction, x_t, t) * std
        value = value + feature_weight * feature_distance(features, share * implied + (1 - share) * pictures, pictures)
    return value
