"""The training loop: what happens in which order. The loss is in objective.py, the network in unet.py, the rest in callbacks.

Everything random in step n is drawn from generators seeded with (seed, n), so a resumed run repeats an uninterrupted one bit for bit.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cfgdiff.runtime.errors import Failure

from .checkpoint import BEFORE_DECAY
from .data import batch_indices
from .optim import rate_factor, set_rate
from .run import Run


def train_step(run: Run, pictures: Tensor, labels: Tensor) -> float:
    """One step of the run on pictures (B, C, H, W) float32 in [-1, 1] with labels (B,). Returns the loss."""
    config = run.config
    generator = torch.Generator().manual_seed(config.train.seed * 1_000_003 + run.step)
    torch.manual_seed(config.train.seed * 1_000_003 + run.step)  # dropout
    if config.train.flip:
        flipped = torch.rand(len(pictures), generator=generator) < 0.5
        pictures = torch.where(flipped[:, None, None, None], pictures.flip(3), pictures)
    with run.autocast():
        value = run.objective(run.network, config.objective, config.schedule, pictures, labels, run.null_class, generator)
    value.backward()
    set_rate(run.optimisers, rate_factor(config.optimiser, run.step, run.progress))
    for optimiser in run.optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    run.ema.update(run.network, run.step)
    return value.item()


def train(run: Run) -> bool:
    """Train to the end, with checkpoints. Returns False where SIGINT or SIGTERM ended it early (after a last checkpoint)."""
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
            for callback in run.callbacks:
                callback.step(run, value)
            if time.monotonic() - saved > config.checkpoint_seconds:
                run.save()
                saved = time.monotonic()
        done = run.progress >= 1
        errors = run.test_errors() if done else None
        run.test_loss = None if errors is None else float(errors[1].mean())
        run.save()
        for callback in run.callbacks:
            callback.end(run, done)
    return done


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
