"""The runtime: NumPy around an engine. Never torch. Three calls make pictures:

bundle = load_bundle()                # the packaged model, or a path
engine = open_engine(bundle)
for first, pictures in generate(engine, bundle, classes=["frog"] * 64): ...
"""

from .bundle import Bundle, load_bundle
from .engine import Engine, open_engine
from .generate import generate

__all__ = ["Bundle", "Engine", "generate", "load_bundle", "open_engine"]
