"""The training loop: what happens in which order. The step itself is in objective.py, the network in unet.py.

Everything random in step n is drawn from generators seeded with (seed, n), so a resumed run repeats an uninterrupted one bit for bit.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfgdiff.runtime.errors import BadInput, Failure

from .checkpoint import (
    BEFORE_DECAY,
    initial_weights,
    network_tensors,
    optimiser_tensors,
    read_checkpoint,
    restore_optimisers,
    write_checkpoint,
)
from .config import Config
from .data import PictureSet, batch_indices
from .ema import EMA
from .objective import loss, test_loss
from .optim import fast_bfloat16, make_optimisers, rate_factor, set_rate
from .unet import UNet


@dataclass
class Run:
    """The state of one training run: network, average, optimisers and counters. `out` is its folder."""

    config: Config
    data: PictureSet
    out: Path
    command: str
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.train.seed)
        _, c, h, w = self.data.pictures.shape
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wanted = self.config.train.precision
        self.precision = ("bfloat16" if fast_bfloat16(self.device) else "float32") if wanted == "auto" else wanted
        self.network = UNet(self.config.network, (c, h, w), len(self.data.class_names))
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.network, self.config.train.ema_decay)
        self.optimisers = make_optimisers(self.network, self.config.optimiser)
        self.step, self.pictures_seen, self.seconds = 0, 0, 0.0
        self.initialised_from: str | None = None
        self.test_loss: float | None = None  # of the averaged weights, once the run is done

    @property
    def progress(self) -> float:
        """The share of the run that is done, by pictures or by minutes, whichever is further."""
        by_time = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(self.pictures_seen / self.config.train.pictures, by_time))

    @property
    def decaying(self) -> bool:
        """Whether the learning rate has begun to fall."""
        return self.progress > 1 - self.config.optimiser.decay_share

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
            "image_shape": list(self.data.pictures.shape[1:]), "data_set": self.data.name, "command": self.command,
            "step": self.step, "pictures_seen": self.pictures_seen, "hours": self.seconds / 3600, "test_loss": self.test_loss,
            "initialised_from": self.initialised_from, "decaying": self.decaying,
        }  # fmt: skip
        write_checkpoint(self.out, name or f"{self.pictures_seen:09d}", state, tensors)


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


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives, so that the step under way is finished first."""
    received: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def train_step(run: Run, pictures: Tensor, labels: Tensor) -> float:
    """One step of the run on pictures (B, C, H, W) float32 in [-1, 1] with labels (B,). Returns the loss."""
    config = run.config
    generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + run.step)
    torch.manual_seed(config.train.seed * 1_000_003 + run.step)  # dropout
    if config.train.flip:
        flipped = torch.rand(len(pictures), generator=generator) < 0.5
        pictures = torch.where(flipped[:, None, None, None], pictures.flip(3), pictures)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
        value = loss(run.network, config.objective, config.schedule, pictures, labels, run.network.null_class, generator)
    value.backward()
    set_rate(run.optimisers, rate_factor(config.optimiser, run.step, run.progress))
    for optimiser in run.optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    run.ema.update(run.network, run.step)
    return value.item()


def measure(run: Run) -> float | None:
    """The test loss of the averaged weights, or None where nothing was held out."""
    if not len(run.data.test_pictures):
        return None

    def predict(x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
            answer: Tensor = run.ema.network(x_t.to(run.device), t.to(run.device), label.to(run.device))
            return answer

    return test_loss(predict, run.config.schedule, run.data.test_pictures, run.data.test_labels)


def train(run: Run, report: Callable[[int, float], None]) -> bool:
    """Train to the end, with checkpoints. Returns False where SIGINT or SIGTERM ended it early (after a last checkpoint).

    Args:
        report: called after every step with the pictures of that step and its loss.
    """
    config = run.config.train
    pictures, labels = torch.from_numpy(run.data.pictures), torch.from_numpy(run.data.labels)
    decay_from = 1 - run.config.optimiser.decay_share
    in_decay, saved = run.decaying, time.monotonic()
    with _stop_requests() as stopped:
        while run.progress < 1 and not stopped:
            started = time.monotonic()
            if not in_decay and run.progress >= decay_from:
                in_decay = True
                run.save(BEFORE_DECAY)
            index = torch.from_numpy(batch_indices(len(labels), run.pictures_seen, config.batch, config.seed))
            value = train_step(run, pictures[index].float() / 127.5 - 1, labels[index])
            if not value < float("inf"):
                raise Failure(f"the loss became {value} after {run.pictures_seen} pictures; lower optimiser.lr and resume from {run.out}")
            run.step, run.pictures_seen = run.step + 1, run.pictures_seen + config.batch
            run.seconds += time.monotonic() - started
            report(config.batch, value)
            if time.monotonic() - saved > config.checkpoint_seconds:
                run.save()
                saved = time.monotonic()
        done = run.progress >= 1
        run.test_loss = measure(run) if done else None
        run.save()
    return done
