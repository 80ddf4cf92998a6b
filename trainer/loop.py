"""The training loop: what happens in which order. The loss is in objective.py, the network in unet.py, the rest in callbacks.

Everything random in step n is drawn from (seed, n), so a resumed run repeats an uninterrupted one bit for bit.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import record_function

from cfgdiff.runtime.errors import Failure

from .checkpoint import BEFORE_DECAY
from .optim import rate_factor, set_rate
from .run import Run


def train_step(run: Run, pictures: Tensor, labels: Tensor) -> float:
    """One step of the run on this process's pictures (B, C, H, W) uint8 with labels (B,). Returns their loss."""
    config, total = run.config, torch.zeros((), device=run.device)
    torch.manual_seed((config.train.seed * 1_000_003 + run.step) * run.processes.size + run.processes.rank)  # dropout
    for part, draws, last in run.parts():  # one, unless gradients accumulate
        x = pictures[part].to(run.device, non_blocking=True).float() / 127.5 - 1
        if config.train.flip:
            flipped = (draws.uniform() < 0.5).to(run.device)
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        with run.gradients_shared(last):
            with record_function("forward"), run.autocast():
                value = run.loss(x, labels[part].to(run.device, non_blocking=True), draws) / config.train.accumulate
            with record_function("backward"):
                run.scaler.scale(value).backward()
        total += value.detach()
    with record_function("update"):
        update(run)
    return total.item()  # last, for a GPU works behind: to read a value is to wait for it


def update(run: Run) -> None:
    """Change the weights by their gradients, and the average by the weights."""
    for optimiser in run.optimisers:
        run.scaler.unscale_(optimiser)
    if run.config.train.clip is not None:
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.config.train.clip)
    set_rate(run.optimisers, rate_factor(run.config.optimiser, run.step, run.progress))
    for optimiser in run.optimisers:
        run.scaler.step(optimiser)
        optimiser.zero_grad(set_to_none=True)
    run.scaler.update()
    run.ema.update(run.network, run.step)


def train(run: Run) -> bool:
    """Train to the end, with checkpoints. Returns False where SIGINT or SIGTERM ended it early (after a last checkpoint)."""
    config, saved, stopped = run.config.train, run.seconds, False
    in_decay, decay_from = run.decaying, 1 - run.config.optimiser.decay_share
    with _stop_requests() as requests, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(run.batch, run.pictures_seen)
        while run.progress < 1 and not stopped:
            started = time.monotonic()
            if not in_decay and run.progress >= decay_from:
                in_decay = True
                run.save(BEFORE_DECAY)
            with record_function("data"):
                pictures, labels = coming.result()
                coming = ahead.submit(run.batch, run.pictures_seen + config.batch)
            value = train_step(run, pictures, labels) / run.processes.size
            run.step, run.pictures_seen = run.step + 1, run.pictures_seen + config.batch
            value, spent, wanted = run.processes.total(value, (time.monotonic() - started) * run.processes.main, len(requests))
            run.seconds, stopped = run.seconds + spent, wanted > 0
            if not value < float("inf"):
                raise Failure(f"the loss became {value} after {run.pictures_seen} pictures; lower optimiser.lr and resume from {run.out}")
            with record_function("callbacks"):
                for callback in run.callbacks:
                    callback.step(run, value)
            if run.seconds - saved > config.checkpoint_seconds:
                run.save()
                saved = run.seconds
        done = run.progress >= 1
        errors = run.held_out_errors() if done else None
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
