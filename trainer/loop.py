"""The training loop. The loss is in objective.py, the network in unet.py; everything else is a callback.

Everything random in step n is drawn from (seed, n), so a resumed run repeats an uninterrupted one bit for bit.
"""

import signal
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from cfgdiff.runtime.errors import Failure

from .checkpoint import BEFORE_DECAY
from .draws import Draws
from .optim import rate_factor, set_rate
from .run import Run


def train_step(run: Run, pictures: Tensor, labels: Tensor) -> float:
    """One step of the run on this process's pictures (B, C, H, W) uint8 with labels (B,). Returns their loss."""
    config, total = run.config, torch.zeros((), device=run.device)
    torch.manual_seed((config.train.seed * 1_000_003 + run.step) * run.processes.size + run.processes.rank)  # dropout
    for part, draws, last in _parts(run):  # one, unless gradients accumulate
        x = pictures[part].to(run.device, non_blocking=True).float() / 127.5 - 1
        if config.train.flip:
            flipped = (draws.uniform() < 0.5).to(run.device)
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        with _gradients_shared(run.loss, last):
            with record_function("forward"), run.autocast():
                value = run.loss(x, labels[part].to(run.device, non_blocking=True), draws) / config.train.accumulate
            with record_function("backward"):
                run.scaler.scale(value).backward()
        total += value.detach()
    if run.device.type == "cpu" and not run.config.train.shard:
        # DistributedDataParallel changes the order of its sums after the first step, so also after a resume
        run.processes.average([p.grad for p in run.network.parameters() if p.grad is not None])
    with record_function("update"):
        update(run)
    return total.item()  # last, for a GPU works behind: to read a value is to wait for it


def _parts(run: Run) -> Iterator[tuple[slice, Draws, bool]]:
    """The parts of this process's rows: which rows, their random numbers, and whether it is the last part."""
    train, rows = run.config.train, run.processes.rows(run.config.train.batch, run.config.train.accumulate)
    count = (rows.stop - rows.start) // train.accumulate
    for i in range(train.accumulate):
        draws = Draws(train.seed, run.step, train.batch, rows.start + i * count, count, str(run.device))
        yield slice(i * count, (i + 1) * count), draws, i == train.accumulate - 1


def _gradients_shared(loss: nn.Module, now: bool) -> AbstractContextManager[None]:
    """The context of a backward pass after which the processes average their gradients, or leave that for later."""
    return loss.no_sync() if not now and isinstance(loss, DistributedDataParallel) else nullcontext()


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


def steps(run: Run, stops: Sequence[object] = ()) -> Generator[float, None, None]:
    """Train without end, one step for each value that is taken: data, `train_step`, counters, callbacks.

    Args:
        stops: ends it after the step in which something is appended to it, in any process.

    Yields:
        The loss, as the mean over all processes.

    Raises:
        Failure: it is not finite.
    """
    size = run.config.train.batch
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(_batch, run, run.pictures_seen)
        while True:
            started = time.monotonic()
            with record_function("data"):
                pictures, labels = coming.result()
                coming = ahead.submit(_batch, run, run.pictures_seen + size)
            loss = train_step(run, pictures, labels) / run.processes.size
            run.step, run.pictures_seen = run.step + 1, run.pictures_seen + size
            loss, spent, asked_to_stop = run.processes.total(
                loss, (time.monotonic() - started) * run.processes.main, len(stops)
            )
            run.seconds += spent
            if not loss < float("inf"):
                remedy = f"lower optimiser.lr and resume from {run.out}"
                raise Failure(f"the loss became {loss} after {run.pictures_seen} pictures; {remedy}")
            with record_function("callbacks"):
                for callback in run.callbacks:
                    callback.step(run, loss)
            if asked_to_stop:
                return
            yield loss


def _batch(run: Run, first: int) -> tuple[Tensor, Tensor]:
    """This process's rows of the batch that begins after `first` pictures: (B, C, H, W) uint8 and (B,) int64."""
    train, data = run.config.train, run.data
    index = data.batch(first, train.batch, train.seed, train.balanced)
    index = index[run.processes.rows(train.batch, train.accumulate)]
    rows = torch.from_numpy(data.pictures[index]), torch.from_numpy(data.labels[index])
    return (rows[0].pin_memory(), rows[1].pin_memory()) if run.device.type == "cuda" else rows


def train(run: Run) -> bool:
    """Train to the end, with checkpoints. Returns False where SIGINT or SIGTERM ended it early, after a checkpoint."""
    config, saved, decaying = run.config, run.seconds, run.decaying
    with _stop_requests() as stops, closing(steps(run, stops)) as losses:
        while run.progress < 1:
            if not decaying and run.progress >= 1 - config.optimiser.decay_share:
                decaying = True
                run.save(BEFORE_DECAY)
            if next(losses, None) is None:
                break
            if run.seconds - saved > config.train.checkpoint_seconds:
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
