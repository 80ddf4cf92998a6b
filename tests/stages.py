"""A small random base and stages that enlarge its pictures, as checkpoints would hold them."""

from typing import TYPE_CHECKING

from cfgdiff.runtime.bundle import Defaults

if TYPE_CHECKING:
    from cfgdiff.export.source import Source
    from cfgdiff.trainer.weights import LoadedModel

SMALL = {"norm": "affine", "channels": 8, "multipliers": [1], "attention": [], "head_channels": 8}
STAGE = {"network": {"name": "super-resolution-unet"}, "objective": {"name": "super-resolution"}}
STEPS = (4, 3, 2)  # defaults of the three


def random_model(size: int, patch: int = 2, stage: bool = True) -> "LoadedModel":
    """For pictures of `size` in three classes, every branch awake."""
    import torch

    from cfgdiff.trainer.build import make_network
    from cfgdiff.trainer.config import make_config
    from cfgdiff.trainer.weights import LoadedModel

    part = STAGE if stage else {"network": {}, "objective": {}}
    tree = {"network": SMALL | {"patch": patch} | part["network"], "objective": {"data_std": 0.5} | part["objective"]}
    config = make_config(tree | {"train": {"image_size": size}})
    torch.manual_seed(size)
    network = make_network(config, (3, size, size), 3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, ["a", "b", "c"], (3, size, size), config.schedule, {"pictures_seen": 0})


def cascade_sources() -> "list[Source]":
    """A base for 8x8, and stages to 16x16 and 32x32."""
    from cfgdiff.export.source import from_checkpoint

    models = [random_model(8, 1, stage=False), random_model(16), random_model(32, 4)]
    settings = [Defaults("ddim", STEPS[0], 2.0, (0.1, 50.0)), *(Defaults("ddim", n, 1.5, None) for n in STEPS[1:])]
    return [
        from_checkpoint(model, f"cascade-{place}" if place else "cascade", defaults, place)
        for place, (model, defaults) in enumerate(zip(models, settings, strict=True))
    ]
