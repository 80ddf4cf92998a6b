"""A small random base and stages that enlarge its pictures, as a checkpoint would hold them."""

from cfgdiff.runtime.bundle import Condition
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.weights import LoadedModel

SMALL = {"norm": "affine", "channels": 8, "multipliers": [1], "attention": [], "head_channels": 8}
STAGE = {"network": {"name": "super-resolution-unet"}, "objective": {"name": "super-resolution"}}


def random_model(size: int, patch: int, stage: bool) -> LoadedModel:
    """For pictures of `size` in three classes, every branch awake."""
    import torch

    from cfgdiff.trainer.build import make_network

    part = STAGE if stage else {"network": {}, "objective": {}}
    tree = {"network": SMALL | {"patch": patch} | part["network"], "objective": {"data_std": 0.5} | part["objective"]}
    config = make_config(tree | {"train": {"image_size": size}})
    torch.manual_seed(size)
    network = make_network(config, (3, size, size), 3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, ["a", "b", "c"], (3, size, size), config.schedule, {"pictures_seen": 0})


CONDITION = Condition(2, 100.0, 500.0)
