"""Pictures stay what they are: those of a dozen calls, as they were before the settings of a call became one value.

Bytes are held with an engine that only adds and multiplies in NumPy, so they are the same on every processor. ONNX
Runtime rounds differently from one processor to the next: its CPU engine is held to a stored sheet within 3 levels.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Formula
from PIL import Image

from cfgdiff.runtime import Blend, Bundle, Edit, Engine, generate
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.fitted import Fitted
from cfgdiff.runtime.images import grid

SHEET = Path(__file__).with_name("golden.png")
PICTURE = (np.arange(32 * 32 * 3) * 89 % 251).astype(np.uint8).reshape(32, 32, 3)
MASK = np.arange(32)[:, None] < np.arange(32)
CLASSES = ["frog", 8, "Cat"]
# The settings of a call, and the sha256 of what `Formula` draws with them.
CALLS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ddpm": {"sampler": "ddpm", "steps": 6, "seed": 2**63 - 1, "interval": (0, 1e9)},
    "ddim": {"sampler": "ddim", "eta": 0.5, "spacing": "quadratic", "steps": 5, "guidance": 1},
    "dpmpp-3m": {"sampler": "dpmpp-3m", "steps": 7, "guidance": [1.0, 2.5, 4.0], "seed": [7, 7, 2**64 - 1]},
    "unipc": {"sampler": "unipc", "steps": 5, "guidance": 3, "interval": (0.3, 10), "indices": [9, 2, 4]},
    "heun": {"sampler": "heun", "steps": 6, "guidance": 1.5, "batch": 2},
    "ipndm": {"sampler": "ipndm", "timesteps": [990, 700.5, 300, 20], "guidance": 2},
    "euler-a": {"sampler": "Euler-A", "steps": 4, "seed": 3},
    "fitted": {"sampler": "fitted", "steps": 2},
    "blend": {"steps": 4, "guidance": [2.0, 1.0, 3.0], "blend": Blend(9, ["dog", "ship", "cat"], [0.0, 0.5, 1.0])},
    "edit": {"sampler": "ddim", "steps": 8, "edit": Edit(PICTURE, 0.6, MASK)},
    "rescale and threshold": {"steps": 4, "guidance": [6.0, 1.0, 4.0], "rescale": 0.7, "threshold": 0.9, "batch": 3},
}  # fmt: skip
DIGESTS = {
    "defaults": "10b10d9d666d59721020c50d02cfa0ed529a4926f52e823dd274fbcd4c1829b7",
    "ddpm": "a7129949d27ddd26f48a4592e80a851f708e50f417ac81c061a50c55168fa188",
    "ddim": "e6dee4006c25ce654ae7589d36183aa6904c89cfe5410852754b2ad18cce6071",
    "dpmpp-3m": "db0d49c0622575039762584c29b1d26a04869803014801a4c5f56df00ec3f044",
    "unipc": "9457e14ccafe4616f33c2b9670c5d35b8bb9383c764167cc7a8204b32bf2fbbb",
    "heun": "572b32fd96e0f07c14a270d4c3d270b0dcf16190fbb4dbe00e40056eb9c54603",
    "ipndm": "155bf2f57740ab998d8608c04a9f8119ce26ea51ec4818cbaf419a5f8c4b6c57",
    "euler-a": "4224d405a30b9a98288fdeac0ccc3579167eab1b8f77bb058ca66968cc663582",
    "fitted": "310aec5b7c8346b396f563781323222d2964f45a6db4beb095068d1cfb8eece4",
    "blend": "6557ddc3510565d0c5d2e9a094677b9d813ba541a597ca6e395dec2c794c482e",
    "edit": "5a8bfe556238e0811cc6fa4f92b022b3df49b2dbeabad4bb6ecb6269b5d6cb10",
    "rescale and threshold": "bad6d678389564435e03b306b64d2d5af39377c49dbda603457a0f1faca39f70",
}


class Small(Formula):
    """Takes a call in several batches."""

    max_batch = 5


@pytest.fixture
def bundle(packaged: Bundle) -> Bundle:
    """The packaged model with defaults and fitted steps of its own, which a later model does not change."""
    fitted = Fitted((999.0, 400.0, 0.0), ((0.6, 0.3, 0.0, 0.0), (0.1, 0.9, 0.2, 0.0)), 4.0, (0.1, 3.0))
    return dataclasses.replace(packaged, defaults=Defaults("dpmpp-2m", 5, 4.0, (0.1, 3.0)), fitted={2: fitted})


def pictures(engine: Engine, bundle: Bundle, name: str) -> np.ndarray:
    return np.concatenate([part for _, part in generate(engine, bundle, CLASSES, **CALLS[name])])


@pytest.mark.parametrize("name", list(CALLS))
def test_the_pictures_of_a_call_are_the_same_bytes(bundle: Bundle, name: str) -> None:
    drawn = pictures(Small(), bundle, name)
    assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8 and np.mean((drawn > 0) & (drawn < 255)) > 0.3
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == DIGESTS[name]


def test_the_cpu_engine_draws_the_stored_sheet(engine: Engine, bundle: Bundle) -> None:
    """A row is a call."""
    drawn = np.concatenate([pictures(engine, bundle, name) for name in CALLS if name != "fitted"])
    with Image.open(SHEET) as stored:
        apart = np.abs(grid(drawn, columns=3).astype(int) - np.asarray(stored))
    assert apart.mean() < 0.01 and apart.max() <= 3
