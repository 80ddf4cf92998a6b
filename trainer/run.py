"""The state of a training run, and callbacks' hooks. build.py builds a run; start.py initialises or resumes it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfgdiff.runtime.errors import Failure

from .checkpoint import BEFORE_DECAY, optimiser_tensors, write_checkpoint
from .config import Config
from .data import PictureSet
from .distributed import Processes, gathered
from .ema import EMA
from .objective import held_out_errors
from .state import not_finite
from .steps import sampling_of
from .super_resolution import held_out_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Callback:
    """Hooks into a run; a callback overrides those it needs."""

    name = ""  # in the registry; empty for one that was not looked up
    everywhere = False  # whether all processes have it, or the main one only; needed by what runs the network

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint should hold of it."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned, on a resumed run; empty on a new one."""

    def step(self, run: "Run", loss: float) -> None:
        """After every step, which `run.step` and `run.pictures_seen` already count."""

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Values that a callback has measured and passed to `run.report`."""

    def end(self, run: "Run", done: bool) -> None:
        """After the last checkpoint. `done` is False if the run was stopped early; if not, `run.test_loss` is known."""


@dataclass(eq=False)
class Run:
    """One training run.

    Attributes:
        out: its folder.
        command: the command line that started it, for its provenance.
        max_minutes: when it ends at the latest.
        data_path: where `data` was read from, kept in checkpoints so that a resumed run finds it.
        image_shape: (C, H, W).
        null_class: the label of no class, K.
        precision: of the products; float32, bfloat16 or float16.
        loss: the objective of the network, as torch's wrappers want it.
        initialised_from: the provenance of the weights it started from.
        test_loss: of the averaged weights, once the run is done.
        before_decay: whether the checkpoint from before the decay of the learning rate has been written.
        resumed: the checkpoint folder it was resumed from and the tensors in it that belong to callbacks.
    """

    config: Config
    data: PictureSet
    out: Path
    command: str
    max_minutes: float | None
    processes: Processes
    data_path: str | None
    image_shape: tuple[int, int, int]
    null_class: int
    device: torch.device
    precision: str
    network: nn.Module
    ema: EMA
    optimisers: list[torch.optim.Optimizer]
    loss: nn.Module
    scaler: torch.amp.GradScaler
    callbacks: list[Callback] = field(default_factory=list)
    step: int = 0
    pictures_seen: int = 0
    seconds: float = 0.0
    initialised_from: dict[str, Any] | None = None
    test_loss: float | None = None
    before_decay: bool = False
    resumed: tuple[Path, dict[str, Tensor]] | None = None
    # The step of the last `held_out_errors`, and these.
    _measured: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def progress(self) -> float:
        """The share of the run that is done, by pictures or by minutes, whichever is further."""
        by_time = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(self.pictures_seen / self.config.train.pictures, by_time))

    @property
    def decaying(self) -> bool:
        """Whether the learning rate has begun to fall, and the checkpoint from before that is there."""
        return self.before_decay and self.progress > 1 - self.config.optimiser.decay_share

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "float32")

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor, *inputs: Tensor) -> Tensor:
        """The averaged network's prediction, (B, C, H, W) float32 on the CPU; `inputs` are for networks that take
        further ones: w (B,), or those of `inputs`."""
        with torch.no_grad(), self.autocast():
            prediction: Tensor = self.ema.network(*(value.to(self.device) for value in (x_t, t, label, *inputs)))
        return prediction.float().cpu()

    def inputs(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """What a super-resolution network takes beside x_t, t and the class, for pictures (B, C, H, W) in [-1, 1]."""
        return held_out_inputs(sampling_of(self.config).get("condition"), self.config.schedule)(pictures)

    def held_out_errors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `objective.held_out_errors`, of the averaged weights as they are now; None where nothing was held out."""
        data = self.data
        if not len(data.test_pictures):
            return None
        if self._measured is None or self._measured[0] != self.step:
            held_out = data.test_pictures, data.test_labels
            errors = held_out_errors(self.predict, self.config.schedule, *held_out, self.inputs)
            self._measured = self.step, errors
        return self._measured[1]

    def report(self, values: dict[str, float]) -> None:
        """Pass measured values to every callback."""
        for callback in self.callbacks:
            callback.metrics(self, values)

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint, by default under the number of pictures seen. All processes must call this."""
        tensors = optimiser_tensors(self.optimisers)
        tensors |= {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        tensors |= {f"callback.{c.name}.{k}": v for c in self.callbacks for k, v in c.tensors().items()}
        tensors = {name: gathered(value) for name, value in sorted(tensors.items())}
        if broken := not_finite(tensors):
            after = f"after {self.pictures_seen} pictures: no checkpoint written"
            raise Failure(f"{broken} is no longer finite {after}; lower optimiser.lr and resume from {self.out}")
        if self.processes.main:
            write_checkpoint(
                self.out, name or f"{self.pictures_seen:09d}", self._state(), tensors, self.config.train.keep
            )
        self.before_decay |= name == BEFORE_DECAY  # last, so that a run which is killed before it writes that one anew

    def _state(self) -> dict[str, Any]:
        """What state.json holds; see `state.State`."""
        return {
            "config": self.config.model_dump(mode="json"), "class_names": self.data.class_names,
            "image_shape": list(self.image_shape), "data_set": self.data.name, "command": self.command,
            "step": self.step, "pictures_seen": self.pictures_seen, "hours": self.seconds / 3600,
            "test_loss": self.test_loss, "initialised_from": self.initialised_from, "decaying": self.decaying,
            "scaler": self.scaler.state_dict(), "data": self.data_path,
        }  # fmt: skip
