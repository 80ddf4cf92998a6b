"""Training speed against the loop of diffusers' unconditional example on accelerate, and against group normalisation.

All train on the same pictures with the same batch, in turns, in the same precision on the same threads; ours and
accelerate the same network, and ours once more with `network.norm=group`. Each has its own optimiser and its own
average of the weights; ours also logs and keeps its snapshots. The example stays as written, without channels_last,
which users of accelerate may add.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfgdiff.runtime.errors import BadInput
from cfgdiff.trainer.build import add_callbacks, make_network, new_run
from cfgdiff.trainer.config import ENLARGING, Config, load_preset, make_config
from cfgdiff.trainer.data import PictureSet, load_data
from cfgdiff.trainer.loop import steps as training_steps
from cfgdiff.trainer.optim import fast_bfloat16

from .timing import Case, interleaved


def our_steps(config: Config, data: PictureSet, folder: Path) -> Iterator[None]:
    """One step of `cfgdiff train` at a time: data, step, callbacks."""
    run = new_run(config, data, folder, "benchmark")
    add_callbacks(run)
    for _ in training_steps(run):
        yield


def their_steps(config: Config, data: PictureSet) -> Iterator[None]:
    """One step at a time of a loop as in diffusers' examples/unconditional_image_generation: accelerate, AdamW,
    clipping, EMAModel."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(
        mixed_precision="bf16" if config.train.precision == "bfloat16" else "no", cpu=not torch.cuda.is_available()
    )
    network = make_network(config, (3, *data.pictures.shape[2:]), len(data.class_names))
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    scheduler: Any = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    loader = torch.utils.data.DataLoader(_Tensors(data), batch_size=config.train.batch, shuffle=True, drop_last=True)
    network, optimiser, loader = accelerator.prepare(network, optimiser, loader)
    while True:
        for clean, labels in loader:
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),), device=clean.device)
            with accelerator.accumulate(network):
                prediction = network(scheduler.add_noise(clean, noise, t), t.float(), labels)
                accelerator.backward(torch.nn.functional.mse_loss(prediction, scheduler.get_velocity(clean, noise, t)))
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
            average.step(network.parameters())
            yield


class _Tensors(torch.utils.data.Dataset):
    """Pictures as the example's transforms leave them, but from memory: flipped at random, in [-1, 1]."""

    def __init__(self, data: PictureSet) -> None:
        self._pictures, self._labels = torch.tensor(data.pictures), torch.tensor(data.labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        picture = self._pictures[i].float() / 127.5 - 1
        return picture.flip(2) if torch.rand(()) < 0.5 else picture, self._labels[i]


def steps_of(loop: Iterator[None], steps: int) -> Callable[[], None]:
    """A case for `interleaved`: that many steps of it."""

    def turn() -> None:
        for _ in range(steps):
            next(loop)

    return turn


def configs(preset: str, overrides: tuple[str, ...], precision: str, batch: int | None) -> tuple[Config, Config]:
    """The preset with these settings, and the same with group normalisation. Precision auto is that of `cfgdiff train`
    here."""
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    overrides += (f"train.precision={precision}", *([f"train.batch={batch}"] if batch else []))
    tree = load_preset(preset)
    if make_config(tree, overrides).network.name == ENLARGING[0]:
        raise BadInput(f"preset: the other loop trains no super-resolution stage, found {preset}; take another")
    return make_config(tree, overrides), make_config(tree, (*overrides, "network.norm=group"))


def report(cases: dict[str, Case], rounds: int) -> str:
    """A line a loop with its pictures a second, and a line for the ratio of the first to each other, medians with least
    and largest."""
    lines = []
    for name, case in cases.items():
        spread = f"{case.pictures / max(case.seconds):.1f} .. {case.pictures / min(case.seconds):.1f}"
        lines.append(f"{name:<22}{case.pictures / case.median:8.1f} pictures/s  (median of {rounds}; {spread})")
    first, *others = cases.values()
    for other in others:
        ratios = first.ratios(other)
        lines.append(f"{first.name} / {other.name}: {first.times(other):.2f}  ({min(ratios):.2f} .. {max(ratios):.2f})")
    return "\n".join(lines)


def compare(data: Path, configs: tuple[Config, Config], steps: int, rounds: int) -> str:
    """Time the loops in turns of so many steps, on the pictures at `data`: `report` under a line with the settings."""
    ours, grouped = configs
    pictures = load_data(data, ours.train.image_size).in_memory()
    with tempfile.TemporaryDirectory() as folder:
        loops = {"cfgdiff": our_steps(ours, pictures, Path(folder) / "ours"), "accelerate": their_steps(ours, pictures),
                 "cfgdiff, group norm": our_steps(grouped, pictures, Path(folder) / "grouped")}  # fmt: skip
        cases = interleaved(
            {name: steps_of(loop, steps) for name, loop in loops.items()}, rounds, steps * ours.train.batch
        )
    norm, train, threads = ours.network.norm, ours.train, torch.get_num_threads()
    return f"network.norm={norm}, {train.precision}, batch {train.batch}, {threads} threads\n{report(cases, rounds)}"
