"""Loops of diffusers that take as many multiply-adds a picture as a cascade: its own U-Net, which draws the cascade's
largest pictures directly, and its DDIM around the cascade's own networks.

Speed does not depend on weights, so diffusers' network has random ones.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cfgdiff.runtime import Bundle, Plan, Request, resolve
from cfgdiff.runtime.bundle import Model
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.generate import conditioned
from cfgdiff.runtime.noise import normals

from .peers import Draw, diffusers_sampler, forms
from .timing import interleaved

# Channels at each resolution, in widths: those of diffusers' example of unconditional training, which has 128.
CHANNELS = (1, 1, 2, 2, 4, 4)
WIDTHS = (2, 4, *range(8, 1025, 8))
FEWEST, MOST = 5, 60  # evaluations: of 5, half of one is a tenth; diffusers makes one too many of some above 60


class DirectNetwork(nn.Module):
    """diffusers' `UNet2DModel` for a model's pictures and classes, the null class among them."""

    def __init__(self, model: Model, width: int) -> None:
        super().__init__()
        try:
            from diffusers import UNet2DModel
        except ImportError:
            raise Failure("diffusers is not installed; pip install diffusers") from None
        c, size, _ = model.image_shape
        levels = min(len(CHANNELS), 1 + (size & -size).bit_length() - 1)  # as often as the size can be halved
        attends = [level == levels - 2 for level in range(levels)]
        self.unet: Any = UNet2DModel(
            sample_size=size, in_channels=c, out_channels=c, num_class_embeds=len(model.class_names) + 1,
            layers_per_block=2, block_out_channels=tuple(width * share for share in CHANNELS[:levels]),
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            norm_num_groups=min(8, width), attention_head_dim=min(8, width),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The prediction (B, C, H, W) of x_t (B, C, H, W) at t (B,) for labels (B,)."""
        return self.unet(x, t, class_labels=label).sample


class Direct(NamedTuple):
    """A network that draws a model's pictures directly, by `evaluations` of DDIM of `gmac` a picture together."""

    model: Model
    network: nn.Module
    width: int
    evaluations: int
    gmac: float


def direct(bundle: Bundle, gmac: float, near: int) -> Direct:
    """diffusers' network for the largest pictures of a cascade, guided as its base.

    Of the widths that take `gmac` billions of multiply-adds a picture, within a tenth, in some number of evaluations,
    that whose number is nearest to `near`.

    Raises:
        Failure: there is none, or diffusers is not installed.
    """
    model = Model(bundle.name, bundle.class_names, bundle.picture_shape, bundle.schedule, bundle.defaults)
    rows, choices = model.rows(1, int(model.defaults.guidance != 1)), list[tuple[int, int, float]]()
    for width in WIDTHS:
        each = rows * row_gmac(model, width)
        evaluations = round(gmac / each)
        if evaluations < FEWEST:
            break
        if evaluations <= MOST:
            choices.append((width, evaluations, evaluations * each))
    if not choices:
        less = f"takes {gmac:.3g} GMAC a picture, less than {FEWEST} evaluations of diffusers' narrowest network"
        raise Failure(f"{bundle.name}: {less}; take larger networks or more steps")
    width, evaluations, own = min(choices, key=lambda choice: abs(math.log(choice[1] / near)))
    network = DirectNetwork(model, width).eval().requires_grad_(False)
    return Direct(model, network, width, evaluations, own)


def row_gmac(model: Model, width: int) -> float:
    """Billions of multiply-adds in a row of diffusers' network, as PyTorch counts them; nothing is computed."""
    with torch.device("meta"):
        network, x = DirectNetwork(model, width).eval(), torch.zeros(1, *model.image_shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    return float(counter.get_total_flops()) / 2e9


def direct_loop(found: Direct, n: int, compiled: bool) -> tuple[str, Draw]:
    """diffusers' loop around it, in the form that is the fastest for n pictures; and the form's name."""
    form, network = fastest_form(found.network, found.model, n, compiled)
    sampler = diffusers_sampler(network, found.model, found.evaluations)
    return form, lambda count: sampler(*_example(found.model, count))


def cascade_loop(
    networks: list[nn.Module], bundle: Bundle, n: int, compiled: bool, **settings: Any
) -> tuple[str, Draw]:
    """diffusers' DDIM around the networks of a cascade, each guided in every evaluation and in the form that is the
    fastest for n pictures; and the forms' names.

    Args:
        settings: other fields of `Request` than the cascade's defaults.
    """
    chosen = [fastest_form(network, model, n, compiled) for network, model in zip(networks, bundle.models, strict=True)]

    def draw(count: int) -> np.ndarray:
        classes = [i % len(bundle.class_names) for i in range(count)]
        plan, pictures = resolve(bundle, Request(classes, batch=count, **settings)), None
        for (_, network), part in zip(chosen, (plan, *plan.stages), strict=True):
            pictures = _drawn(network, part if pictures is None else replace(part, low=pictures))
        assert pictures is not None
        return pictures

    return "; ".join(dict.fromkeys(form for form, _ in chosen)), draw


def _drawn(network: nn.Module, plan: Plan) -> np.ndarray:
    """The pictures of one network of a cascade, (N, H, W, C) uint8."""
    model = plan.bundle

    def noise(shape: tuple[int, ...], step: int = 0) -> np.ndarray:
        return normals(plan.seeds, plan.indices, step, shape, model.stage)

    further = () if plan.low is None else conditioned(model, plan.low, noise, plan.request.condition_noise)
    sampler = diffusers_sampler(network, model, plan.steps)
    return sampler(noise(model.image_shape), plan.labels, plan.weights.astype(np.float32), *further)


def cascade_gmac(bundle: Bundle) -> float:
    """Billions of multiply-adds in a picture of `cascade_loop` at the cascade's defaults."""
    plan = resolve(bundle, Request([0]))
    costs = [
        part.steps * model.rows(1, int((part.weights != 1).any())) * (model.gmac or 0)
        for model, part in zip(bundle.models, (plan, *plan.stages), strict=True)
    ]
    return float(sum(costs))


def fastest_form(network: nn.Module, model: Model, n: int, compiled: bool) -> tuple[str, nn.Module]:
    """Of `forms`, the one that takes the least time for an evaluation of n guided pictures, and its name."""
    every, example = forms(network, compiled), _example(model, n)
    noise, *_ = example
    further = () if model.condition is None else (noise, np.full(n, model.condition.noise, np.float32))
    cases = {name: partial(diffusers_sampler(form, model, 1), *example, *further) for name, form in every.items()}
    name = min(interleaved(cases, 3).values(), key=lambda case: case.median).name
    return name, every[name]


def _example(model: Model, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise, labels of all classes in turn, and w of n pictures."""
    labels = np.arange(n) % len(model.class_names)
    return normals(0, np.arange(n), 0, model.image_shape), labels, np.full(n, model.defaults.guidance, np.float32)
