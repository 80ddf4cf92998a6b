"""Averages of the weights whose width is chosen after training (Karras et al. 2024, EDM2, section 3 and appendix C).

After step t the average weighs step s <= t with p(s, t) ~ s^gamma: its width, the standard deviation of p relative to
t, is the same at any t. Snapshots of two such averages along the run are combined afterwards into one of any width.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.files import remove_abandoned

from .checkpoint import read_checkpoint, tensors_under, write_folder, write_run_file
from .distributed import copy_gathered, gathered, local
from .run import Callback, Run
from .state import check_tensors, not_finite

WIDEST = 0.28  # gamma = 0.06; the limit of all widths, at gamma = 0, is 12^-1/2
Width = Annotated[float, Field(ge=0.005, le=WIDEST)]


def gamma_of_width(width: float) -> float:
    """The gamma of a width: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises `BadInput`."""
    if not 0.005 <= width <= WIDEST:
        raise BadInput(f"width: expected 0.005 .. {WIDEST} of the run's length, found {width}")
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots.real.max())


class PowerEMA(Callback):
    """Keeps two averages of different widths and stores snapshots of them in RUN/ema, for `cfgdiff ema`."""

    everywhere = True

    def __init__(
        self, run: Run, *, widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (0.05, 0.1),
        snapshots: Annotated[int, Field(ge=1, le=10_000)] = 16,
    ) -> None:  # fmt: skip
        self._gammas = [gamma_of_width(width) for width in widths]
        self._folder, self._share = run.out / "ema", 1 / snapshots
        self._names = [name for name, _ in run.network.named_parameters()]
        self._tracks = [[p.detach().clone() for p in run.network.parameters()] for _ in self._gammas]
        self._next = self._share
        if run.processes.main:
            remove_abandoned(self._folder / "*")
            for file in self._folder.glob("[0-9]*"):
                step = file.stem.partition("-")[0]
                later = step.isdecimal() and int(step) > run.step  # the run is resumed from an earlier checkpoint
                if later or file.suffix == ".partial":
                    file.unlink()

    def tensors(self) -> dict[str, Tensor]:
        """The averages as they are now, and when the next snapshot is due."""
        kept = {
            f"{i}.{name}": p for i, track in enumerate(self._tracks) for name, p in zip(self._names, track, strict=True)
        }
        return kept | {"next": torch.tensor(self._next, dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See `tensors`."""
        if tensors.keys() == self.tensors().keys():
            self._next = tensors["next"].item()
            copy_gathered({key: value for key, value in self.tensors().items() if key != "next"}, tensors)

    @torch.no_grad()
    def step(self, run: Run, loss: float) -> None:
        """Moves the averages; stores a snapshot of each when it is time."""
        for gamma, track in zip(self._gammas, self._tracks, strict=True):
            torch._foreach_lerp_(local(track), local(run.network.parameters()), 1 - (1 - 1 / run.step) ** (gamma + 1))
        if run.progress >= self._next:
            self._next = (np.floor(run.progress / self._share) + 1) * self._share
            self._store(run)

    def end(self, run: Run, done: bool) -> None:
        """Stores the last snapshot, at the end of the run."""
        if done:
            self._store(run)

    def _store(self, run: Run) -> None:
        named = [zip(self._names, track, strict=True) for track in self._tracks]
        halves = [{name: gathered(p).half().contiguous() for name, p in track} for track in named]
        if not run.processes.main:
            return
        for i, (gamma, tensors) in enumerate(zip(self._gammas, halves, strict=True)):
            metadata = {"step": str(run.step), "gamma": repr(gamma)}
            write_run_file(self._folder / f"{run.step:09d}-{i}.safetensors", save(tensors, metadata), run.out)


def overlap(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of two profiles' product, each (gamma + 1) s^gamma / t^(gamma + 1) on 0 <= s <= t. Broadcasts."""
    low, high = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    power = np.where(t_a < t_b, gamma_b, gamma_a)  # of the one that lasts longer
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (low / high) ** power / high


def coefficients(steps: np.ndarray, gammas: np.ndarray, step: float, gamma: float) -> np.ndarray:
    """The weights (n,) of snapshots whose sum is nearest, in least squares, to the profile of `gamma` at `step`."""
    among = overlap(steps[:, None], gammas[:, None], steps[None], gammas[None])
    wanted = overlap(steps, gammas, np.array(step), np.array(gamma))
    solution: np.ndarray = np.linalg.lstsq(among, wanted, rcond=None)[0]
    return solution


def reconstruct(run: Path, width: float) -> dict[str, Tensor]:
    """The parameters of a run averaged with this width, up to its newest snapshot. Raises `Failure` and `BadInput`."""
    from safetensors import safe_open

    gamma, files = gamma_of_width(width), sorted((run / "ema").glob("*.safetensors"))
    if not files:
        raise Failure(f"{run / 'ema'}: no snapshots; train with the callback snapshots (it is on unless set to null)")
    steps, gammas = [], []
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            steps.append(float(metadata["step"]))
            gammas.append(float(metadata["gamma"]))
            if not (0 < steps[-1] < np.inf and 0 < gammas[-1] < np.inf):
                raise ValueError(f"step {steps[-1]} and gamma {gammas[-1]}")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(file, error) from None
    weights = coefficients(np.array(steps), np.array(gammas), max(steps), gamma)
    total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in load_file(files[-1]).items()}
    for file, weight in zip(files, weights.tolist(), strict=True):
        snapshot = load_file(file)
        try:
            check_tensors(snapshot, total)
            if broken := not_finite(snapshot):
                raise ValueError(f"{broken} holds values that are not finite")
        except ValueError as error:
            raise _damaged(file, error) from None
        for name, value in snapshot.items():
            total[name].add_(value.double(), alpha=weight)
    return {name: value.float() for name, value in total.items()}


def _damaged(file: Path, error: Exception) -> Failure:
    return Failure(f"{file}: damaged snapshot ({str(error).splitlines()[0]}); remove it and try again")


def write_reconstructed(run: Path, width: float, out: Path) -> None:
    """Write the averaged weights as a checkpoint folder that `cfgdiff export` takes."""
    state, tensors = read_checkpoint(run)
    averaged = tensors_under("ema", tensors) | reconstruct(run, width)  # buffers as they are
    state = state | {"command": f"{state['command']}; cfgdiff ema RUN --width {width:g}", "test_loss": None}
    write_folder(out, state, {f"ema.{name}": value for name, value in averaged.items()})
