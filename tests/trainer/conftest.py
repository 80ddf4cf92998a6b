"""A network and data sets small enough for tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")


@pytest.fixture
def tiny_tree() -> dict:
    """A config whose runs take seconds."""
    return {
        "network": {
            "channels": 16,
            "multipliers": [1, 2],
            "attention": [4],
            "head_channels": 16,
            "patch": 2,
            "dropout": 0.1,
        },
        "objective": {"prediction": "v", "data_std": 0.5, "timesteps": "lognormal"},
        "optimiser": {"name": "muon", "warmup_steps": 2},
        "train": {"pictures": 96, "batch": 8, "image_size": 16, "ema_decay": 0.9, "checkpoint_seconds": 0.001},
    }


@pytest.fixture
def tiny_network(tiny_tree: dict) -> "torch.nn.Module":
    """A small U-Net for 16x16 pictures and 3 classes."""
    from cfgdiff.trainer.config import make_config
    from cfgdiff.trainer.unet import UNet

    torch.manual_seed(0)
    return UNet(make_config(tiny_tree).network, (3, 16, 16), 3)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Three classes of pictures in mixed sizes and modes."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "green", "red")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i, (size, mode) in enumerate(
            [((16, 16), "RGB"), ((40, 20), "RGB"), ((19, 33), "L"), ((32, 32), "RGBA"), ((8, 8), "P")] * 5
        ):
            pixels = rng.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
            pixels[..., 2 - k] += 150
            Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return tmp_path / "pictures"
