"""Builds what a config asks for: the network, the run around it, and its callbacks."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cfgdiff.runtime.errors import Failure

from . import registry
from .checkpoint import tensors_under
from .config import OWN_NETWORKS, Config
from .data import PictureSet
from .distributed import Processes, here, shard
from .ema import EMA
from .objective import LearnedWeight, Loss
from .optim import fast_bfloat16, make_optimisers
from .run import Callback, Run
from .state import damaged

DEFAULT_CALLBACKS = ("meter", "snapshots", "validation", "preview", "log", "tensorboard")


def make_network(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The untrained network of a config.

    Raises:
        BadSetting: an unknown name or option.
        Failure: pictures that do not fit it.
    """
    part = config.network
    factor = part.patch * 2 ** (len(part.multipliers) - 1)
    if part.name in OWN_NETWORKS and (image_shape[1] % factor or image_shape[2] % factor):
        expected, size = f"sides that are multiples of {factor}", f"{image_shape[2]}x{image_shape[1]}"
        remedy = "change train.image_size or network.multipliers"
        raise Failure(f"this network takes pictures with {expected}, found {size}; {remedy}")
    network: nn.Module = registry.bound("network", part.name, part.options)(part, image_shape, num_classes)
    if config.objective.weighting == "learned":
        network.loss_weight = LearnedWeight()
    return network


def new_run(config: Config, data: PictureSet, out: Path, command: str, max_minutes: float | None = None,
            processes: Processes | None = None, data_path: str | None = None) -> Run:  # fmt: skip
    """A run at its first step, without callbacks. See `Run` for the arguments."""
    torch.manual_seed(config.train.seed)
    processes = processes or Processes(here())
    processes.rows(config.train.batch, config.train.accumulate)  # raises for a batch that cannot be shared out
    _, c, h, w = data.pictures.shape
    device, null_class, precision = processes.device, len(data.class_names), config.train.precision
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    sharded = config.train.shard and processes.size > 1
    layout = torch.contiguous_format if sharded else torch.channels_last  # FSDP2 knows no other
    network = make_network(config, (c, h, w), null_class)
    network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    ema = EMA(network, config.train.ema_decay)
    torch.backends.cudnn.benchmark = True  # batches are all of one size
    if config.train.compile:
        network.compile()
    if sharded:
        shard(network)
        shard(ema.network)
    optimisers = make_optimisers(network, config.optimiser)
    loss: nn.Module = Loss(network, config, null_class)
    if processes.size > 1 and not sharded and device.type != "cpu":  # there see loop.py
        loss = DistributedDataParallel(loss)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    return Run(
        config, data, out, command, max_minutes, processes, data_path, image_shape=(c, h, w), null_class=null_class,
        device=device, precision=precision, network=network, ema=ema, optimisers=optimisers, loss=loss, scaler=scaler,
    )  # fmt: skip


def add_callbacks(run: Run) -> None:
    """Attach the callbacks that the config asks for: the usual ones unless set to null, then the others, in order."""
    chosen: dict[str, dict[str, Any] | None] = {name: {} for name in DEFAULT_CALLBACKS} | run.config.callbacks
    for name, options in chosen.items():
        everywhere = getattr(registry.find("callback", name).make, "everywhere", False)
        if options is not None and (everywhere or run.processes.main):
            callback = registry.bound("callback", name, options)(run)
            if not isinstance(callback, Callback):
                expected, made = "a cfgdiff.trainer.callbacks.Callback", type(callback).__name__
                raise Failure(f"callbacks.{name}: expected {expected}, found {made}; correct the plugin")
            callback.name = name
            _restore(callback, run)
            run.callbacks.append(callback)


def _restore(callback: Callback, run: Run) -> None:
    """Raises `Failure` where the checkpoint's tensors are of another shape."""
    folder, tensors = run.resumed or (run.out, {})
    kept, own = tensors_under(f"callback.{callback.name}", tensors), callback.tensors()
    for name in kept.keys() & own.keys():
        if kept[name].shape != own[name].shape:
            expected, found = tuple(own[name].shape), tuple(kept[name].shape)
            raise damaged(folder, f"callback.{callback.name}.{name}: expected {expected}, found {found}")
    callback.restore(kept)
