"""`cfgdiff classifier`: the small classifier that `cfgdiff eval` judges pictures by."""

from pathlib import Path

import click

from .flags import progress_bar
from .train import PATH


@click.group()
def classifier() -> None:
    """Train the classifier for `cfgdiff eval --classifier`."""


@classifier.command(
    epilog="""\b
Example:
  cfgdiff classifier train DATA --out classifier.onnx"""
)
@click.argument("data", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The ONNX file to write.")
@click.option(
    "--size",
    default=32,
    show_default=True,
    type=click.IntRange(min=8),
    help="Side of the pictures, for folders of pictures.",
)
@click.option(
    "--epochs",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Times through the pictures.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of the weights, and of the order of the pictures.",
)
def train(data: Path, out: Path, size: int, epochs: float, seed: int) -> None:
    """Train a small classifier on DATA: CIFAR-10 unpacked, or whatever cfgdiff train takes."""
    from cfgdiff.benchmarks import classifier as networks
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.files import write_whole
    from cfgdiff.trainer.data import load_data

    if not out.resolve().parent.is_dir():
        raise Failure(f"--out: {out.resolve().parent} is not a folder; make it first")
    pictures = load_data(data, size).in_memory()
    with progress_bar("training", round(epochs * len(pictures.pictures))) as watch:
        network = networks.train(pictures, epochs, seed, watch)
    n = len(pictures.test_labels)
    accuracy = networks.accuracy(network, pictures.test_pictures, pictures.test_labels) if n else None
    metadata = {
        "class_names": pictures.class_names,
        "accuracy": accuracy,
        "data": pictures.name,
        "epochs": epochs,
        "seed": seed,
    }
    write_whole(
        out, networks.build(network, pictures.pictures.shape[2], metadata).SerializeToString(deterministic=True)
    )
    click.echo(f"{out}: {'no held-out pictures' if accuracy is None else f'{accuracy:.2%} of {n} held-out pictures'}")
