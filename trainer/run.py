"""The state of a training run: what it is made of, what a checkpoint holds of it, and how it goes on from one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cfgdiff.runtime.errors import BadInput, Failure

from . import registry
from .callbacks import Callback
from .checkpoint import (
    BEFORE_DECAY,
    find_checkpoint,
    initial_weights,
    make_network,
    network_tensors,
    optimiser_tensors,
    origin,
    read_checkpoint,
    restore_optimisers,
    write_checkpoint,
)
from .config import Config
from .data import PictureSet, batch_indices
from .distributed import Processes, copy_whole, here, shard, whole
from .draws import Draws
from .ema import EMA
from .objective import held_out_errors
from .optim import fast_bfloat16, make_optimisers
from .state import check_tensors, damaged, not_finite

DEFAULT_CALLBACKS = ("meter", "ema", "validation", "preview", "log", "tensorboard")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Loss(nn.Module):
    """The objective as a module with one forward pass, as torch's wrappers want it."""

    def __init__(self, network: nn.Module, config: Config, null_class: int) -> None:
        super().__init__()
        self.network, self._config, self._null_class = network, config, null_class
        self._objective = registry.bound("objective", config.objective.name, config.objective.options)

    def forward(self, pictures: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """(B, C, H, W) in [-1, 1], (B,) -> a scalar."""
        config = self._config
        value: Tensor = self._objective(self.network, config.objective, config.schedule, pictures, labels, self._null_class, draws)
        return value


@dataclass
class Run:
    """The state of one training run: network, average, optimisers, callbacks and counters. `out` is its folder.

    `data_path` is where `data` was read from, for going on without being told again.
    """

    config: Config
    data: PictureSet
    out: Path
    command: str
    max_minutes: float | None = None
    processes: Processes = field(default_factory=lambda: Processes(here()))
    data_path: str | None = None
    callbacks: list[Callback] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        config = self.config
        torch.manual_seed(config.train.seed)
        _, c, h, w = self.data.pictures.shape
        self.image_shape, self.null_class = (c, h, w), len(self.data.class_names)
        self.device, self._rows = self.processes.device, self.processes.rows(config.train.batch, config.train.accumulate)
        wanted = config.train.precision
        self.precision = ("bfloat16" if fast_bfloat16(self.device) else "float32") if wanted == "auto" else wanted
        sharded = config.train.shard and self.processes.size > 1
        layout = torch.contiguous_format if sharded else torch.channels_last  # FSDP2 knows no other
        self.network = make_network(config, self.image_shape, self.null_class)
        self.network = self.network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = EMA(self.network, config.train.ema_decay)
        torch.backends.cudnn.benchmark = True  # batches are all of one size
        if config.train.compile:
            self.network.compile()
        if sharded:
            shard(self.network)
            shard(self.ema.network)
        self.optimisers = make_optimisers(self.network, config.optimiser)
        self.loss: nn.Module = _Loss(self.network, config, self.null_class)
        if self.processes.size > 1 and not sharded:
            self.loss = DistributedDataParallel(self.loss)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        self.step, self.pictures_seen, self.seconds = 0, 0, 0.0
        self.initialised_from: dict[str, Any] | None = None  # the provenance of the weights it started from
        self.test_loss: float | None = None  # of the averaged weights, once the run is done
        self._decaying = False
        self._restored, self._restored_from = dict[str, Tensor](), self.out
        self._measured: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None  # the step of the last `held_out_errors`, and what it found

    @property
    def progress(self) -> float:
        """The share of the run that is done, by pictures or by minutes, whichever is further."""
        by_time = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(self.pictures_seen / self.config.train.pictures, by_time))

    @property
    def decaying(self) -> bool:
        """Whether the learning rate has begun to fall, and the checkpoint from before that is there."""
        return self._decaying and self.progress > 1 - self.config.optimiser.decay_share

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "float32")

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        """This process's rows of the batch that begins after `first` pictures: (B, C, H, W) uint8 and (B,) int64, ready to be moved."""
        index = batch_indices(len(self.data.labels), first, self.config.train.batch, self.config.train.seed)[self._rows]
        rows = torch.from_numpy(self.data.pictures[index]), torch.from_numpy(self.data.labels[index])
        return (rows[0].pin_memory(), rows[1].pin_memory()) if self.device.type == "cuda" else rows

    def parts(self) -> Iterator[tuple[slice, Draws, bool]]:
        """What this process computes in this step, one after the other: rows, their random numbers, and whether it is the last part."""
        train, parts = self.config.train, self.config.train.accumulate
        count = (self._rows.stop - self._rows.start) // parts
        for i in range(parts):
            draws = Draws(train.seed, self.step, train.batch, self._rows.start + i * count, count, str(self.device))
            yield slice(i * count, (i + 1) * count), draws, i == parts - 1

    def gradients_shared(self, now: bool) -> AbstractContextManager[None]:
        """The context of a backward pass after which the processes average their gradients, or leave that for later."""
        return self.loss.no_sync() if not now and isinstance(self.loss, DistributedDataParallel) else nullcontext()

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The answer of the averaged network, (B, C, H, W) float32 on the CPU."""
        with torch.no_grad(), self.autocast():
            answer: Tensor = self.ema.network(x_t.to(self.device), t.to(self.device), label.to(self.device))
        return answer.float().cpu()

    def held_out_errors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `objective.held_out_errors`, of the averaged weights as they are now; None where nothing was held out."""
        data = self.data
        if not len(data.test_pictures):
            return None
        if self._measured is None or self._measured[0] != self.step:
            self._measured = self.step, held_out_errors(self.predict, self.config.schedule, data.test_pictures, data.test_labels)
        return self._measured[1]

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint or bundle; counters and optimisers start anew. Raises `Failure` for those of another network."""
        found, started_from = initial_weights(path), origin(path)
        own = self.network.state_dict()
        beside = [name for name in found if name not in own and name.endswith((".weight", ".bias"))]
        if beside:
            norm = "; add --set network.norm=group" if ".norm" in beside[0] else "; use its own preset"
            raise Failure(f"--init {path}: has {len(beside)} weights that this network lacks, as {beside[0]}{norm}")
        for name, value in own.items():
            if name.startswith("loss_weight.") and name not in found:  # bundles leave out what only training uses
                found[name] = value
            if name not in found or found[name].squeeze().shape != value.squeeze().shape:  # graphs keep some as (C, 1, 1)
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise Failure(f"--init {path}: expected {name} of shape {tuple(value.shape)}, found {shape}; use its own preset")
        for network in (self.network, self.ema.network):
            copy_whole(network.state_dict(), {name: found[name].reshape(value.shape) for name, value in own.items()})
        self.initialised_from = started_from

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
        """Continue exactly where the checkpoint in `folder` was written. Raises `Failure` for tensors of another network."""
        try:
            for prefix, network in (("network", self.network), ("ema", self.ema.network)):
                check_tensors(network_tensors(tensors, prefix), network.state_dict(), f"{prefix}.")
                copy_whole(network.state_dict(), network_tensors(tensors, prefix))
            restore_optimisers(self.optimisers, tensors)
        except ValueError as error:
            raise damaged(folder, error) from None
        self.step, self.pictures_seen, self.seconds = state["step"], state["pictures_seen"], state["hours"] * 3600
        self.initialised_from, self._decaying = state["initialised_from"], state["decaying"]
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._decaying = False
        self._restored, self._restored_from = tensors, folder

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint (the main process; but all must call this), by default under the number of pictures seen."""
        tensors = optimiser_tensors(self.optimisers)
        tensors |= {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        tensors |= {f"callback.{c.name}.{k}": v for c in self.callbacks for k, v in c.tensors().items()}
        tensors = {name: whole(value) for name, value in sorted(tensors.items())}
        if broken := not_finite(tensors):
            again = f"lower optimiser.lr and resume from {self.out}"
            raise Failure(f"{broken} is no longer finite after {self.pictures_seen} pictures: no checkpoint written; {again}")
        if not self.processes.main:
            return
        state = {
            "config": self.config.model_dump(mode="json"), "class_names": self.data.class_names,
            "image_shape": list(self.image_shape), "data_set": self.data.name, "command": self.command,
            "step": self.step, "pictures_seen": self.pictures_seen, "hours": self.seconds / 3600, "test_loss": self.test_loss,
            "initialised_from": self.initialised_from, "decaying": self.decaying, "scaler": self.scaler.state_dict(),
            "data": self.data_path,
        }  # fmt: skip
        write_checkpoint(self.out, name or f"{self.pictures_seen:09d}", state, tensors, self.config.train.keep)
        self._decaying |= name == BEFORE_DECAY  # last, so that a run which is killed before it writes that one anew

    def add_callbacks(self) -> None:
        """The callbacks that the config asks for: the usual ones unless set to null, then the others, in order."""
        chosen: dict[str, dict[str, Any] | None] = {name: {} for name in DEFAULT_CALLBACKS} | self.config.callbacks
        for name, options in chosen.items():
            everywhere = getattr(registry.find("callback", name).make, "everywhere", False)
            if options is not None and (everywhere or self.processes.main):
                made = registry.bound("callback", name, options)(self)
                if not isinstance(made, Callback):
                    raise Failure(f"the callback '{name}' gave {type(made).__name__}; expected a cfgdiff.trainer.callbacks.Callback")
                made.name = name
                self._restore_callback(made)
                self.callbacks.append(made)

    def _restore_callback(self, made: Callback) -> None:
        kept, own = network_tensors(self._restored, f"callback.{made.name}"), made.tensors()
        for name in kept.keys() & own.keys():
            if kept[name].shape != own[name].shape:
                expected, found = tuple(own[name].shape), tuple(kept[name].shape)
                raise damaged(self._restored_from, f"callback.{made.name}.{name}: expected {expected}, found {found}")
        made.restore(kept)

    def report(self, values: dict[str, float]) -> None:
        """Hand measured values to every callback."""
        for callback in self.callbacks:
            callback.metrics(self, values)


def resume(out: Path, overrides: Callable[[dict[str, Any]], Config], load: Callable[[Config], PictureSet], command: str,
           max_minutes: float | None, processes: Processes | None = None, data_path: str | None = None) -> Run:  # fmt: skip
    """A run as its newest checkpoint left it; from before the decay where more pictures are asked for than it was made for."""
    folder, before = find_checkpoint(out), out / "checkpoints" / BEFORE_DECAY
    state, tensors = read_checkpoint(folder)
    config, made_for = overrides(state["config"]), Config.model_validate(state["config"])
    if config.network != made_for.network:
        raise BadInput("--set network.…: the network of a run cannot change on --resume; start a new run")
    if config.train.pictures > made_for.train.pictures and state["decaying"] and before.is_dir():
        folder, (state, tensors) = before, read_checkpoint(before)
    data, origin_of_data = load(config), data_path or state.get("data")
    _check_same(data, state, out)
    run = Run(config, data, out, f"{state['command']}; {command}", max_minutes, processes or Processes(here()), origin_of_data)
    run.restore(state, tensors, folder)
    return run


def _check_same(data: PictureSet, state: dict[str, Any], out: Path) -> None:
    """Raises `Failure` where the data are not of the classes and shape that the run was trained on."""
    pairs = [("classes", data.class_names, state["class_names"]), ("shape", list(data.pictures.shape[1:]), state["image_shape"])]
    for what, found, wanted in pairs:
        if found != wanted:
            has, had = (", ".join(map(str, value)) for value in (found, wanted))
            raise Failure(f"--data: has the {what} {has:.200}; the run {out} has {had:.200}; give the data it was trained on")
