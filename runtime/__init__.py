"""The runtime: NumPy around an engine. Never torch. Three calls make pictures:

>>> bundle = load_bundle()                # the packaged model, or a path
>>> engine = open_engine(bundle)
>>> for first, pictures in generate(engine, bundle, classes=["frog"] * 3, steps=4):
...     print(pictures.shape, pictures.dtype)
(3, 32, 32, 3) uint8

Engines may be used by several threads; the generator may be closed at any time.
"""

from .bundle import Bundle, load_bundle
from .choose import open_engine
from .engine import Engine
from .generate import generate

__all__ = ["Bundle", "Engine", "generate", "load_bundle", "open_engine"]
