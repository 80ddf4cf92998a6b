"""What happens between steps: measuring, validation, previews, logs. Each is a small class; plugins add more.

Callbacks run in the order of `build.DEFAULT_CALLBACKS`, then the others that the config names. None of them changes
what a step computes.
"""

import json
import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cfgdiff.runtime import generate
from cfgdiff.runtime.bundle import Defaults, Model
from cfgdiff.runtime.generate import to_uint8
from cfgdiff.runtime.images import encoded, grid
from cfgdiff.runtime.upscale import reduced

from .checkpoint import cannot_write, write_run_file
from .engine_torch import TorchEngine
from .run import Callback as Callback  # plugins import it from here
from .run import Run
from .steps import sampling_of


class Timed(Callback):
    """Acts once in so many seconds of training time, which is the same in all processes, and at the end of the run."""

    everywhere = True

    def __init__(self, run: Run, seconds: float) -> None:
        self._seconds, self._last = seconds, run.seconds

    def step(self, run: Run, loss: float) -> None:
        """Acts when it is time."""
        if run.seconds - self._last >= self._seconds:
            self._last = run.seconds
            self.act(run)

    def end(self, run: Run, done: bool) -> None:
        """Acts with the final weights."""
        if done:
            self.act(run)

    def act(self, run: Run) -> None:
        """What it does."""


class Meter(Timed):
    """Reports loss, learning rate, pictures a second and the network's floating-point operations a second."""

    def __init__(self, run: Run, *, seconds: NonNegativeFloat = 10.0) -> None:
        super().__init__(run, seconds)
        self._losses, self._pictures, self._spent = list[float](), run.pictures_seen, run.seconds
        self._flops = training_flops(run)

    def step(self, run: Run, loss: float) -> None:
        """Collects the loss; reports when it is time."""
        self._losses.append(loss)
        super().step(run, loss)

    def end(self, run: Run, done: bool) -> None:
        """Reports the last steps."""
        if self._losses:
            self.act(run)

    def act(self, run: Run) -> None:
        """Reports the steps since the last report."""
        rate = (run.pictures_seen - self._pictures) / max(1e-9, run.seconds - self._spent)
        values = {"loss": math.fsum(self._losses) / len(self._losses)}
        values |= {"pictures_per_second": rate, "gflops": rate * self._flops / 1e9}
        for i, optimiser in enumerate(run.optimisers):
            values[f"rate/{i}"] = optimiser.param_groups[0]["lr"]
        self._losses, self._pictures, self._spent = [], run.pictures_seen, run.seconds
        run.report(values)


def training_flops(run: Run) -> float:
    """Floating-point operations of the network's forward and backward pass for one picture (a multiply-add is two)."""
    x = torch.zeros(1, *run.image_shape, device=run.device)
    t, label = torch.zeros(1, device=run.device), torch.zeros(1, dtype=torch.int64, device=run.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.ema.network(x, t, label, *run.inputs(x))
    return 3.0 * counter.get_total_flops()  # backward: twice the forward


class Validation(Timed):
    """Reports the test loss of the averaged weights, in all and by noise level ln(sigma / alpha)."""

    def __init__(self, run: Run, *, seconds: NonNegativeFloat = 600.0) -> None:
        super().__init__(run, seconds)

    def act(self, run: Run) -> None:
        """Measures; for the packaged model this takes about a hundredth of the time."""
        measured = run.held_out_errors()
        if measured is None:
            return
        levels, errors = measured
        values = {"test_loss": float(errors.mean())}
        nearest = np.clip(np.rint(levels), -3, 2).astype(int)
        for level in range(-3, 3):
            if (inside := nearest == level).any():
                values[f"test_loss/level {level:+d}"] = float(errors[inside].mean())
        run.report(values)


class Best(Callback):
    """Keeps the checkpoint with the lowest test loss that `validation` measured, as RUN/checkpoints/best."""

    everywhere = True  # a checkpoint may be gathered from all

    def __init__(self, run: Run) -> None:
        self._lowest = math.inf

    def tensors(self) -> dict[str, Tensor]:
        """The lowest test loss so far."""
        return {"lowest": torch.tensor(self._lowest, dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See `tensors`."""
        self._lowest = tensors["lowest"].item() if "lowest" in tensors else math.inf

    def metrics(self, run: Run, values: dict[str, float]) -> None:
        """Saves a checkpoint when the test loss is lower than ever."""
        if values.get("test_loss", math.inf) < self._lowest:
            self._lowest = values["test_loss"]
            run.save("best")


class Preview(Timed):
    """Writes a grid of pictures to RUN/previews, a column a class (ten at most), always drawn from the same noise.

    A super-resolution stage enlarges training pictures, reduced.
    """

    def __init__(
        self, run: Run, *, seconds: NonNegativeFloat = 600.0, rows: Annotated[int, Field(ge=1, le=1000)] = 4,
        steps: Annotated[int, Field(ge=1, le=1000)] = 12, guidance: float = 2.0,
    ) -> None:  # fmt: skip
        super().__init__(run, seconds)
        self._rows, self._steps, self._guidance = rows, steps, guidance

    def act(self, run: Run) -> None:
        """Draws and writes it."""
        known = sampling_of(run.config)
        steps = max(known["fitted"]) if "fitted" in known else self._steps
        defaults = Defaults("dpmpp-2m", steps, self._guidance, None)
        bundle = Model(run.out.name, run.data.class_names, run.image_shape, run.config.schedule, defaults, **known)
        classes = run.data.class_names[:10]
        engine, low = TorchEngine(run.predict, run.null_class, takes_w=bundle.guidance_input is not None), None
        if bundle.condition:
            low = to_uint8(reduced(self._shown(run, len(classes)) / 127.5 - 1, bundle.condition.factor))
        pictures = np.concatenate([part for _, part in generate(engine, bundle, classes * self._rows, low=low)])
        if run.processes.main:
            file = run.out / "previews" / f"{run.pictures_seen:09d}.png"
            write_run_file(file, encoded(grid(pictures, columns=len(classes))), run.out)

    def _shown(self, run: Run, columns: int) -> np.ndarray:
        """The training pictures for a grid, (N, C, H, W) uint8: the first of each class, around again where few."""
        places = [np.flatnonzero(run.data.labels == k) for k in range(columns)]
        rows = [place[row % len(place)] if len(place) else 0 for row in range(self._rows) for place in places]
        return run.data.pictures[rows]


class Log(Callback):
    """Appends every report to RUN/log.jsonl as a line of JSON; a resumed run drops lines from after its checkpoint."""

    def __init__(self, run: Run) -> None:
        self._file = run.out / "log.jsonl"
        if self._file.exists():
            kept = [line for line in self._file.read_text().splitlines() if _seen(line) <= run.pictures_seen]
            write_run_file(self._file, "".join(f"{line}\n" for line in kept).encode(), run.out)

    def metrics(self, run: Run, values: dict[str, float]) -> None:
        """Writes one line."""
        entry = {"pictures": run.pictures_seen, "step": run.step, "seconds": round(run.seconds, 3)} | values
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise cannot_write(self._file, error, run.out) from None


def _seen(line: str) -> int:
    try:
        return int(json.loads(line)["pictures"])
    except (ValueError, KeyError, TypeError):
        return 2**63  # a line cut off by a crash


class TensorBoard(Callback):
    """Writes every report to RUN/tensorboard (tensorboard --logdir RUN), if TensorBoard is installed."""

    def __init__(self, run: Run) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=run.pictures_seen or None)

    def metrics(self, run: Run, values: dict[str, float]) -> None:
        """Writes each value as a point over the pictures seen."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, run.pictures_seen)

    def end(self, run: Run, done: bool) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._writer.close()
