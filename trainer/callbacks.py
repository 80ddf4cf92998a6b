"""What happens beside the step: measuring, validation, previews, logs. Each is a small class; plugins bring more.

Callbacks run in the order meter, ema, validation, preview, log, tensorboard, then the others that the config names. None of them
changes what a step computes.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from cfgdiff.runtime.errors import Failure

if TYPE_CHECKING:
    from torch import Tensor

    from .run import Run


class Callback:
    """The hooks; a callback overrides those it needs."""

    name = ""  # in the registry; empty for one that was not looked up
    everywhere = False  # whether all processes of a run have it, and not the main one alone: for what runs the network

    def tensors(self) -> dict[str, "Tensor"]:
        """What of it a checkpoint should hold."""
        return {}

    def restore(self, tensors: dict[str, "Tensor"]) -> None:
        """Take back what `tensors` gave, on a resumed run; empty on a new one."""

    def step(self, run: "Run", loss: float) -> None:
        """After every step; `run.step` and `run.pictures_seen` count it already."""

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Values that some callback has measured and handed to `run.report`."""

    def end(self, run: "Run", done: bool) -> None:
        """After the last checkpoint; `done` is False where the run was stopped early. `run.test_loss` is known where done."""


class Every:
    """A clock of training time, the same in all processes: `due(run)` is true once in so many seconds."""

    def __init__(self, run: "Run", seconds: float) -> None:
        self.seconds, self._last = seconds, run.seconds

    def due(self, run: "Run") -> bool:
        """Whether the time has passed since it last was true (or since the start)."""
        if run.seconds - self._last < self.seconds:
            return False
        self._last = run.seconds
        return True


class Meter(Callback):
    """Reports loss, learning rate, pictures a second and the network's floating-point operations a second."""

    everywhere = True

    def __init__(self, run: "Run", *, seconds: NonNegativeFloat = 10.0) -> None:
        self._every, self._losses = Every(run, seconds), list[float]()
        self._pictures, self._spent = run.pictures_seen, run.seconds
        self._flops = training_flops(run)

    def step(self, run: "Run", loss: float) -> None:
        """Counts; reports when it is time."""
        self._losses.append(loss)
        if self._every.due(run):
            self._report(run)

    def end(self, run: "Run", done: bool) -> None:
        """Reports what is left."""
        if self._losses:
            self._report(run)

    def _report(self, run: "Run") -> None:
        rate = (run.pictures_seen - self._pictures) / max(1e-9, run.seconds - self._spent)
        values = {"loss": math.fsum(self._losses) / len(self._losses), "pictures_per_second": rate, "gflops": rate * self._flops / 1e9}
        for i, optimiser in enumerate(run.optimisers):
            values[f"rate/{i}"] = optimiser.param_groups[0]["lr"]
        self._losses, self._pictures, self._spent = [], run.pictures_seen, run.seconds
        run.report(values)


def training_flops(run: "Run") -> float:
    """Floating-point operations of the network's forward and backward pass for one picture (a multiply-add is two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, *run.image_shape, device=run.device)
    t, label = torch.zeros(1, device=run.device), torch.zeros(1, dtype=torch.int64, device=run.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.ema.network(x, t, label)
    return 3.0 * counter.get_total_flops()  # backward: twice the forward


class Validation(Callback):
    """Reports the test loss of the averaged weights, in all and by noise level ln(sigma / alpha)."""

    everywhere = True

    def __init__(self, run: "Run", *, seconds: NonNegativeFloat = 600.0) -> None:
        self._every = Every(run, seconds)

    def step(self, run: "Run", loss: float) -> None:
        """Measures when it is time; takes about a hundredth of it for the packaged model."""
        if self._every.due(run):
            self._measure(run)

    def end(self, run: "Run", done: bool) -> None:
        """Measures the final weights."""
        if done:
            self._measure(run)

    def _measure(self, run: "Run") -> None:
        found = run.test_errors()
        if found is None:
            return
        levels, errors = found
        values = {"test_loss": float(errors.mean())}
        nearest = np.clip(np.rint(levels), -3, 2).astype(int)
        for level in range(-3, 3):
            if (inside := nearest == level).any():
                values[f"test_loss/level {level:+d}"] = float(errors[inside].mean())
        run.report(values)


class Best(Callback):
    """Keeps the checkpoint with the lowest test loss so far, as RUN/checkpoints/best; it is measured by the callback validation."""

    everywhere = True  # a checkpoint may be gathered from all

    def __init__(self, run: "Run") -> None:
        self._lowest = math.inf

    def tensors(self) -> dict[str, "Tensor"]:
        """The lowest test loss so far."""
        import torch

        return {"lowest": torch.tensor(self._lowest, dtype=torch.float64)}

    def restore(self, tensors: dict[str, "Tensor"]) -> None:
        """See `tensors`."""
        self._lowest = tensors["lowest"].item() if "lowest" in tensors else math.inf

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Saves where the test loss is lower than ever."""
        if values.get("test_loss", math.inf) < self._lowest:
            self._lowest = values["test_loss"]
            run.save("best")


class Preview(Callback):
    """Writes a grid of pictures, a column a class (ten at most), to RUN/previews: always from the same noise, by the runtime's sampler."""

    everywhere = True

    def __init__(
        self, run: "Run", *, seconds: NonNegativeFloat = 600.0, rows: Annotated[int, Field(ge=1, le=1000)] = 4,
        steps: Annotated[int, Field(ge=1, le=1000)] = 12, guidance: float = 2.0,
    ) -> None:  # fmt: skip
        self._every, self._rows, self._steps, self._guidance = Every(run, seconds), rows, steps, guidance

    def step(self, run: "Run", loss: float) -> None:
        """Draws when it is time."""
        if self._every.due(run):
            self._draw(run)

    def end(self, run: "Run", done: bool) -> None:
        """Draws with the final weights."""
        if done:
            self._draw(run)

    def _draw(self, run: "Run") -> None:
        from cfgdiff.runtime import generate
        from cfgdiff.runtime.bundle import Defaults, Model
        from cfgdiff.runtime.images import grid, save_png

        from .engine_torch import TorchEngine

        defaults = Defaults("dpmpp-2m", self._steps, self._guidance, None)
        bundle = Model(run.out.name, run.data.class_names, run.image_shape, run.config.schedule, defaults)
        classes = run.data.class_names[:10]
        engine = TorchEngine(run.predict, run.null_class)
        pictures = np.concatenate([part for _, part in generate(engine, bundle, classes * self._rows)])
        if not run.processes.main:
            return
        folder = run.out / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        save_png(folder / f"{run.pictures_seen:09d}.png", grid(pictures, columns=len(classes)))


class Log(Callback):
    """Appends every report as a line of JSON to RUN/log.jsonl; a resumed run drops the lines from after its checkpoint."""

    def __init__(self, run: "Run") -> None:
        self._file = run.out / "log.jsonl"
        if self._file.exists():
            kept = [line for line in self._file.read_text().splitlines() if _seen(line, self._file) <= run.pictures_seen]
            _replace(self._file, "".join(f"{line}\n" for line in kept))

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Writes one line."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps({"pictures": run.pictures_seen, "step": run.step, "seconds": round(run.seconds, 3)} | values) + "\n")
        except OSError as error:
            raise Failure(f"{self._file}: cannot be written ({error.strerror}); make room, then go on with --resume {run.out}") from None


def _seen(line: str, file: Path) -> int:
    try:
        return int(json.loads(line)["pictures"])
    except (ValueError, KeyError, TypeError):
        return 2**63  # a line cut off by a crash


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


class TensorBoard(Callback):
    """Writes every report for TensorBoard to RUN/tensorboard (tensorboard --logdir RUN), where TensorBoard is installed."""

    def __init__(self, run: "Run") -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=run.pictures_seen or None)

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Writes one point a value, over pictures seen."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, run.pictures_seen)

    def end(self, run: "Run", done: bool) -> None:
        """Flushes what was not yet written."""
        if self._writer is not None:
            self._writer.close()
