"""What `cfgdiff train` shows while it trains: a bar in a terminal, and else, as in a log, a line now and then."""

import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.data import counted
from cfgdiff.trainer.loop import train as train_loop

if TYPE_CHECKING:
    from tqdm import tqdm

    from cfgdiff.trainer.run import Run

SECONDS = 60.0  # between two lines


class Progress(Callback):
    """Keeps a smoothed loss and shows it after every step."""

    average = 0.0

    def step(self, run: "Run", loss: float) -> None:
        """Counts the step."""
        self.average = 0.98 * self.average + 0.02 * loss if self.average else loss
        self.show(run)

    def show(self, run: "Run") -> None:
        """Shows how far the run is."""


class Bar(Progress):
    """A bar in a terminal."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar = bar

    def show(self, run: "Run") -> None:
        """Moves it by a batch."""
        self._bar.set_postfix(loss=f"{self.average:.4f}", refresh=False)
        self._bar.update(run.config.train.batch)


class Lines(Progress):
    """A line after the first step and then every `SECONDS`."""

    def __init__(self, run: "Run", clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._due, self._from, self._since = clock, 0.0, run.pictures_seen, clock()

    def show(self, run: "Run") -> None:
        """Prints it where it is due."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + SECONDS
        rate = (run.pictures_seen - self._from) / max(1e-9, now - self._since)
        click.echo(
            f"{run.pictures_seen:,} of {run.config.train.pictures:,} pictures, loss {self.average:.4f}, "
            f"{rate:.0f} pictures/s",
            err=True,
        )


def train_with_progress(run: "Run", again: list[str]) -> None:
    """Train to the end, or to Ctrl-C. `again` are the words after `cfgdiff train --resume RUN` that resume the run."""
    if not run.processes.main:
        train_loop(run)
        return
    _introduce(run)
    if sys.stderr.isatty():
        done = _with_bar(run)
    else:
        run.callbacks.append(Lines(run))
        done = train_loop(run)
    if not done:
        click.echo(
            f"stopped; resume with: {shlex.join(['cfgdiff', 'train', '--resume', str(run.out), *again])}", err=True
        )
        return
    loss = "" if run.test_loss is None else f", test loss {run.test_loss:.4f}"
    click.echo(
        f"done: {run.pictures_seen:,} pictures{loss}; export with: {shlex.join(['cfgdiff', 'export', str(run.out)])}",
        err=True,
    )


def _introduce(run: "Run") -> None:
    for note in run.data.notes:
        click.echo(f"{run.data.name}: {note}", err=True)
    data, parameters = run.data, sum(p.numel() for p in run.network.parameters())
    pictures = f"{counted(len(data.labels), 'picture')} in {counted(len(data.class_names), 'class', 'classes')}"
    computed = f"{run.processes.size} x {run.device.type}, {run.precision}"
    click.echo(
        f"{pictures}, {len(data.test_labels):,} more held out; {parameters:,} parameters; {computed}; run {run.out}",
        err=True,
    )


def _with_bar(run: "Run") -> bool:
    from tqdm import tqdm

    length, seen = run.config.train.pictures, run.pictures_seen
    with tqdm(total=length, initial=seen, unit="pictures", smoothing=0.05, mininterval=1) as bar:
        run.callbacks.append(Bar(bar))
        return train_loop(run)
