"""The runtime: NumPy around an engine. Never torch. Two calls make pictures, three make them batch by batch:

>>> bundle = load_bundle()                # the packaged model, or a path
>>> draw(bundle, ["frog"] * 3, steps=4).shape
(3, 32, 32, 3)
>>> with open_engine(bundle, "cpu") as engine:
...     for first, pictures in generate(engine, bundle, classes=["frog"] * 3, steps=4):
...         print(pictures.shape, pictures.dtype)
(3, 32, 32, 3) uint8

Engines may be used by several threads; the generator may be closed at any time.
"""

from .bundle import Bundle, load_bundle
from .choose import open_engine
from .draw import draw
from .engine import Engine
from .engines import own_version
from .errors import BadInput, Failure
from .generate import generate, sample
from .images import to_images
from .plan import Plan, resolve
from .request import Blend, Edit, Request, Stage

__version__ = own_version()

__all__ = [
    "BadInput", "Blend", "Bundle", "Edit", "Engine", "Failure", "Plan", "Request", "Stage", "__version__", "draw",
    "generate", "load_bundle", "open_engine", "resolve", "sample", "to_images",
]  # fmt: skip
