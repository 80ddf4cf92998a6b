"""Training speed against what people would write instead, the loop of diffusers' unconditional example on accelerate, and against group
normalisation.

    python -m cfgdiff.benchmarks.training --data DATA

All train on the same pictures with the same batch, in turns, in the same precision on the same threads; ours and accelerate the same
network, and ours once more with `network.norm=group`. Each has its own optimiser and its own average of the weights; ours also logs and
keeps its snapshots. The example stays as it is written: it does not ask for channels_last, which whoever uses accelerate may add.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from cfgdiff.trainer.build import add_callbacks, make_network, new_run
from cfgdiff.trainer.config import Config, load_preset, make_config
from cfgdiff.trainer.data import PictureSet, load_data
from cfgdiff.trainer.loop import steps as training_steps
from cfgdiff.trainer.optim import fast_bfloat16

from . import run
from .timing import Case, interleaved


def our_steps(config: Config, data: PictureSet, folder: Path) -> Iterator[None]:
    """One step of `cfgdiff train` at a time: data, step, callbacks."""
    run = new_run(config, data, folder, "benchmark")
    add_callbacks(run)
    for _ in training_steps(run):
        yield


def their_steps(config: Config, data: PictureSet) -> Iterator[None]:
    """One step at a time of a loop as in diffusers' examples/unconditional_image_generation: accelerate, AdamW, clipping, EMAModel."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision="bf16" if config.train.precision == "bfloat16" else "no", cpu=not torch.cuda.is_available())
    network = make_network(config, (3, *data.pictures.shape[2:]), len(data.class_names))
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
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
    """The preset with these settings, and the same with group normalisation. Precision auto is what `cfgdiff train` would take here."""
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    overrides += (f"train.precision={precision}", *([f"train.batch={batch}"] if batch else []))
    tree = load_preset(preset)
    return make_config(tree, overrides), make_config(tree, (*overrides, "network.norm=group"))


def report(found: dict[str, Case], rounds: int) -> str:
    """A line a loop with its pictures a second, and a line for the ratio of the first to each other, medians with least and largest."""
    lines = []
    for name, case in found.items():
        spread = f"{case.pictures / max(case.seconds):.1f} .. {case.pictures / min(case.seconds):.1f}"
        lines.append(f"{name:<22}{case.pictures / case.median:8.1f} pictures/s  (median of {rounds}; {spread})")
    first, *others = found.values()
    for other in others:
        ratios = first.ratios(other)
        lines.append(f"{first.name} / {other.name}: {first.times(other):.2f}  ({min(ratios):.2f} .. {max(ratios):.2f})")
    return "\n".join(lines)


@click.command()
@click.option("--data", default="cifar10", show_default=True, type=click.Path(path_type=Path), help="As for cfgdiff train.")
@click.option("--preset", default="cifar10-small", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, as for cfgdiff train. Repeats.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]),
              help="Of all loops; auto is bfloat16 where the device has instructions for it.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Pictures a step. Default: the preset's.")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(min=1), help="Steps a turn.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Turns that are measured.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
def command(data: Path, preset: str, overrides: tuple[str, ...], precision: str, batch: int | None, steps: int, rounds: int,
            threads: int) -> None:  # fmt: skip
    """Compare the training speed with a loop on accelerate, as in diffusers' example, and with group normalisation."""
    torch.set_num_threads(threads)
    config, grouped = configs(preset, overrides, precision, batch)
    pictures = load_data(data, config.train.image_size)
    with tempfile.TemporaryDirectory() as folder:
        loops = {"cfgdiff": our_steps(config, pictures, Path(folder) / "ours"), "accelerate": their_steps(config, pictures),
                 "cfgdiff, group norm": our_steps(grouped, pictures, Path(folder) / "grouped")}  # fmt: skip
        found = interleaved({name: steps_of(loop, steps) for name, loop in loops.items()}, rounds, steps * config.train.batch)
    click.echo(f"{preset}, network.norm={config.network.norm}, {config.train.precision}, batch {config.train.batch}, {threads} threads")
    click.echo(report(found, rounds))


if __name__ == "__main__":
    run(command)
