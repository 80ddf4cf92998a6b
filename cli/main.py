"""`cfgdiff`: every command but pictures. Heavy packages are imported inside the commands."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .bench import bench
from .cascade import cascade
from .classifier import classifier
from .engines import engines
from .errors import run_command
from .evaluate import evaluate
from .export import export
from .fit import fit_steps
from .flags import Numbers
from .fleet import fleet
from .serve import serve
from .train import PATH, plugin_option, train
from .verify import verify

if TYPE_CHECKING:
    from cfgdiff.runtime import Bundle
    from cfgdiff.trainer.data import PictureSet


@click.group(
    epilog="""\b
Examples:
  cfgdiff train --preset smoke --data DATA --out runs/smoke
  cfgdiff export runs/smoke --out exported/smoke
  cfgdiff info exported/smoke

Pictures are made with cfgdiff-run."""
)
@click.version_option(package_name="cfgdiff")
def group() -> None:
    """Train, export and inspect class-conditional diffusion models."""


for part in (train, export, verify, fit_steps, evaluate, bench, classifier, engines, serve):
    group.add_command(part)
for comparison in (cascade, fleet):
    bench.add_command(comparison)


@group.command(
    epilog="""\b
Examples:
  cfgdiff info
  cfgdiff info --data DATA --grid seen.png
  cfgdiff info exported/smoke --data DATA"""
)
@click.argument("bundle", type=PATH, required=False)
@click.option("--data", type=PATH,
              help="Show what training on this data set would read, hold out and leave out. With the bundle's classes, "
                   "also measure the test loss and the bound's rate on its held-out pictures.")  # fmt: skip
@click.option(
    "--image-size", type=click.IntRange(8, 4096), metavar="N", help="Read --data in this size. Default: the bundle's."
)
@click.option(
    "--grid",
    type=PATH,
    metavar="FILE.png",
    help="Write training pictures of --data as the network sees them, a column a class.",
)
def info(bundle: Path | None, data: Path | None, image_size: int | None, grid: Path | None) -> None:
    """Show what a bundle holds and where it comes from (by default cifar10-small), after checking every file."""
    if data is None and (image_size or grid):
        raise click.UsageError(f"{'--image-size' if image_size else '--grid'}: is about a data set, found no --data")
    if grid and grid.suffix.lower() != ".png":
        raise click.UsageError(f"--grid {grid}: expected a name that ends in .png")
    from contextlib import closing

    from cfgdiff.export.card import card
    from cfgdiff.runtime import load_bundle, open_engine
    from cfgdiff.runtime.survey import try_out

    loaded = load_bundle(bundle)
    if bundle and image_size and image_size != loaded.image_shape[1]:
        high = f"the pictures of the bundle {bundle} are {loaded.image_shape[1]} high"
        raise click.UsageError(f"--image-size {image_size}: {high}; leave it out")
    for model in loaded.models if bundle or data is None else ():
        for precision in model.variants:
            with closing(open_engine(model, "cpu", precision)) as engine:
                try_out(engine, model)
    if data is None:
        click.echo(card(loaded))
        return
    from cfgdiff.runtime.images import save_png
    from cfgdiff.trainer.data import check_held_out
    from cfgdiff.trainer.describe import describe, sheet

    pictures, text = describe(data, image_size or loaded.image_shape[1])
    if bundle is not None:
        check_held_out(pictures, data, loaded.class_names, "bundle")
    same = pictures.class_names == loaded.class_names and pictures.pictures.shape[1:] == loaded.image_shape
    if same and len(pictures.test_labels):
        measured = _measured(loaded.models[0], pictures)
        click.echo(card(loaded))
        click.echo(f"\n- test_loss, measured: {measured['test_loss']:.4f}")
        rate = f"{measured['rate']:.3f} bits a dimension at DDPM's schedule (Ho et al. 2020: 1.78 for CIFAR-10)"
        click.echo(f"- rate, measured: {rate}\n")
    click.echo(text)
    if grid:
        save_png(grid, sheet(pictures))
        click.echo(f"- written: {grid}")


def _measured(bundle: "Bundle", held_out: "PictureSet") -> dict[str, float]:
    from cfgdiff.export.parity import bundle_measures
    from cfgdiff.runtime import open_engine

    return bundle_measures(
        open_engine(bundle, precision="float32"), bundle, held_out.test_pictures, held_out.test_labels
    )


@group.command(
    epilog="""\b
Examples:
  cfgdiff models
  cfgdiff-run --model cifar10-small --class frog --n 16
  cfgdiff info cifar10-turbo"""
)
def models() -> None:
    """List the packaged models: size, default steps, rows a picture, quality, and speed on this machine."""
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.bundle import packaged_models

    from .models import table

    click.echo(table([load_bundle(folder) for folder in packaged_models().values()]))


@group.command(
    epilog="""\b
Examples:
  cfgdiff ema runs/small --width 0.1
  cfgdiff ema runs/small --width 0.03,0.06,0.12 --data DATA"""
)
@click.argument("run", type=PATH)
@click.option("--width", "widths", required=True, metavar="W[,W...]", type=Numbers("numbers as in 0.05,0.1"),
              help="Width of the average, relative to the run's length; repeats by commas.")  # fmt: skip
@click.option("--data", type=PATH, help="Measure the test loss of each on the held-out pictures of this data folder.")
@plugin_option
def ema(run: Path, widths: tuple[float, ...], data: Path | None, plugins: tuple[Path, ...]) -> None:
    """Average a run's weights with another width, from its snapshots; writes RUN/ema-WIDTH, for cfgdiff export."""
    from cfgdiff.trainer.data import load_held_out
    from cfgdiff.trainer.objective import held_out_loss
    from cfgdiff.trainer.power_ema import gamma_of_width, write_reconstructed
    from cfgdiff.trainer.registry import load_plugins
    from cfgdiff.trainer.super_resolution import held_out_inputs
    from cfgdiff.trainer.weights import load_model

    load_plugins(plugins)
    for value in widths:
        gamma_of_width(value)
    held_out = None
    if data is not None:
        trained = load_model(run)
        held_out = load_held_out(data, trained.image_shape[1], trained.class_names, "run")
    for value in widths:
        out, measured = run / f"ema-{value:g}", ""
        write_reconstructed(run, value, out)
        if held_out is not None:
            model = load_model(out)
            inputs = held_out_inputs(model.sampling.get("condition"), model.schedule)
            loss = held_out_loss(model.network, model.schedule, held_out.test_pictures, held_out.test_labels, inputs)
            measured = f", test loss {loss:.4f}"
        click.echo(f"width {value:g}{measured}: export with cfgdiff export {out}")


@group.command(
    epilog="""\b
Examples:
  cfgdiff plugins
  cfgdiff plugins --plugin mine.py"""
)
@plugin_option
def plugins(plugins: tuple[Path, ...]) -> None:
    """List the parts of training runs, and where they come from.

    A part is chosen by its name: --set data.name=NAME, and so on for network, objective and optimiser; its options are
    set with --set data.options='{KEY: VALUE}'. --set callbacks.NAME='{KEY: VALUE}' adds a callback, and
    --set callbacks.NAME=null removes it. Other packages offer
    parts by entry points in the group cfgdiff.plugins.
    """
    from cfgdiff.trainer.registry import all_parts, load_plugins

    load_plugins(plugins)
    rows = [(part.kind, part.name, part.origin, part.summary) for part in all_parts()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)))


main = run_command(group)
