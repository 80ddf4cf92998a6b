"""An example of a plugin: a data set of coloured shapes and a callback, in one file.

    cfgdiff train --preset smoke --plugin examples/shapes.py --data . --out runs/shapes \\
        --set data.name=shapes --set callbacks.norms='{steps: 5}'

`register(KIND, NAME)` gives a function or class its name. What a part is called with is fixed for its kind (see
`cfgdiff.trainer.registry.KINDS`); keyword-only parameters are options, set with --set data.options='{count: 200}'.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cfgdiff.trainer.callbacks import Callback
from cfgdiff.trainer.data import PictureSet
from cfgdiff.trainer.registry import register
from cfgdiff.trainer.run import Run

CLASSES = ["circle", "square"]


@register("data", "shapes")
def shapes(path: Path, image_size: int, *, count: int = 400) -> PictureSet:
    """Circles and squares in random colours and places, drawn when they are needed; `path` is not read."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), count)
    pictures = np.stack([draw(CLASSES[label], image_size, rng) for label in labels])
    held_out = count // 10
    return PictureSet("shapes", CLASSES, pictures[held_out:], labels[held_out:], pictures[:held_out], labels[:held_out])


def draw(shape: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One shape on a black ground, (3, size, size) uint8."""
    image = Image.new("RGB", (size, size))
    x, y = rng.integers(0, size // 2, 2).tolist()
    box, colour = (x, y, x + size // 2, y + size // 2), tuple(rng.integers(80, 256, 3).tolist())
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    return np.asarray(image).transpose(2, 0, 1)


@register("callback", "norms")
class Norms(Callback):
    """Reports the length of all weights together; the log and TensorBoard take it from there."""

    def __init__(self, run: Run, *, steps: int = 100) -> None:
        self.steps = steps

    def step(self, run: Run, loss: float) -> None:
        """Measures every `steps` steps."""
        if run.step % self.steps == 0:
            squares = sum(p.detach().square().sum().item() for p in run.network.parameters())
            run.report({"weight_norm": squares**0.5})
