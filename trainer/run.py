"""The state of a training run: what it is made of, what a checkpoint holds of it, and how it goes on from one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfgdiff.runtime.errors import BadInput, Failure

from . import registry
from .callbacks import Callback
from .checkpoint import (
    BEFORE_DECAY,
    initial_weights,
    make_network,
    network_tensors,
    optimiser_tensors,
    read_checkpoint,
    restore_optimisers,
    write_checkpoint,
)
from .config import Config
from .data import PictureSet
from .ema import EMA
from .objective import test_errors
from .optim import fast_bfloat16, make_optimisers

DEFAULT_CALLBACKS = ("meter", "validation", "preview", "log", "tensorboard")


@dataclass
class Run:
    """The state of one training run: network, average, optimisers, callbacks and counters. `out` is its folder."""

    config: Config
    data: PictureSet
    out: Path
    command: str
    max_minutes: float | None = None
    callbacks: list[Callback] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        config = self.config
        torch.manual_seed(config.train.seed)
        _, c, h, w = self.data.pictures.shape
        self.image_shape, self.null_class = (c, h, w), len(self.data.class_names)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wanted = config.train.precision
        self.precision = ("bfloat16" if fast_bfloat16(self.device) else "float32") if wanted == "auto" else wanted
        self.network = make_network(config, self.image_shape, self.null_class)
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.network, config.train.ema_decay)
        self.optimisers = make_optimisers(self.network, config.optimiser)
        self.objective = registry.bound("objective", config.objective.name, config.objective.options)
        self.step, self.pictures_seen, self.seconds = 0, 0, 0.0
        self.initialised_from: str | None = None
        self.test_loss: float | None = None  # of the averaged weights, once the run is done
        self._measured: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None  # the step of the last `test_errors`, and what it found

    @property
    def progress(self) -> float:
        """The share of the run that is done, by pictures or by minutes, whichever is further."""
        by_time = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(self.pictures_seen / self.config.train.pictures, by_time))

    @property
    def decaying(self) -> bool:
        """Whether the learning rate has begun to fall."""
        return self.progress > 1 - self.config.optimiser.decay_share

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The answer of the averaged network, (B, C, H, W) float32 on the CPU."""
        with torch.no_grad(), self.autocast():
            answer: Tensor = self.ema.network(x_t.to(self.device), t.to(self.device), label.to(self.device))
        return answer.float().cpu()

    def test_errors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `objective.test_errors`, of the averaged weights as they are now; None where nothing was held out."""
        data = self.data
        if not len(data.test_pictures):
            return None
        if self._measured is None or self._measured[0] != self.step:
            self._measured = self.step, test_errors(self.predict, self.config.schedule, data.test_pictures, data.test_labels)
        return self._measured[1]

    def start_from(self, path: Path) -> None:
        """Take the weights of a checkpoint or bundle; counters and optimisers start anew. Raises `Failure` where shapes differ."""
        found = initial_weights(path)
        own = self.network.state_dict()
        for name, value in own.items():
            if name not in found or found[name].squeeze().shape != value.squeeze().shape:  # graphs keep some as (C, 1, 1)
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise Failure(f"--init {path}: expected {name} of shape {tuple(value.shape)}, found {shape}; use its own preset")
        self.network.load_state_dict({name: found[name].reshape(value.shape) for name, value in own.items()})
        self.ema.network.load_state_dict(self.network.state_dict())
        self.initialised_from = str(path)

    def restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue exactly where the checkpoint was written."""
        self.network.load_state_dict(network_tensors(tensors, "network"))
        self.ema.network.load_state_dict(network_tensors(tensors, "ema"))
        restore_optimisers(self.optimisers, tensors)
        self.step, self.pictures_seen, self.seconds = state["step"], state["pictures_seen"], state["hours"] * 3600
        self.initialised_from = state["initialised_from"]

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint, by default under the number of pictures seen."""
        tensors = optimiser_tensors(self.optimisers)
        tensors |= {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        state = {
            "config": self.config.model_dump(mode="json"), "class_names": self.data.class_names,
            "image_shape": list(self.image_shape), "data_set": self.data.name, "command": self.command,
            "step": self.step, "pictures_seen": self.pictures_seen, "hours": self.seconds / 3600, "test_loss": self.test_loss,
            "initialised_from": self.initialised_from, "decaying": self.decaying,
        }  # fmt: skip
        write_checkpoint(self.out, name or f"{self.pictures_seen:09d}", state, tensors)

    def add_callbacks(self) -> None:
        """The callbacks that the config asks for: the usual ones unless set to null, then those of plugins, in order."""
        chosen: dict[str, dict[str, Any] | None] = {name: {} for name in DEFAULT_CALLBACKS} | self.config.callbacks
        for name, options in chosen.items():
            if options is not None:
                made = registry.bound("callback", name, options)(self)
                if not isinstance(made, Callback):
                    raise Failure(f"the callback '{name}' gave {type(made).__name__}; expected a cfgdiff.trainer.callbacks.Callback")
                self.callbacks.append(made)

    def report(self, values: dict[str, float]) -> None:
        """Hand measured values to every callback."""
        for callback in self.callbacks:
            callback.metrics(self, values)


def resume(out: Path, overrides: Callable[[dict[str, Any]], Config], load: Callable[[Config], PictureSet], command: str,
           max_minutes: float | None) -> Run:  # fmt: skip
    """A run as its newest checkpoint left it; from before the decay where more pictures are asked for than it was made for."""
    state, tensors = read_checkpoint(out)
    before = out / "checkpoints" / BEFORE_DECAY
    config = overrides(state["config"])
    if config.network != Config.model_validate(state["config"]).network:
        raise BadInput("--set network.…: the network of a run cannot change on --resume; start a new run")
    if config.train.pictures > state["config"]["train"]["pictures"] and state["decaying"] and before.is_dir():
        state, tensors = read_checkpoint(before)
    run = Run(config, load(config), out, f"{state['command']}; {command}", max_minutes)
    run.restore(state, tensors)
    return run
