"""AlexNet's weights: drawn ones that every machine can have, and the published ones where they are."""

from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.alexnet import LAYERS

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "lpips" / "alexnet_features.safetensors"


@pytest.fixture(scope="session")
def published() -> Path:
    """AlexNet's own weights."""
    if not PUBLISHED.is_file():
        pytest.skip(f"AlexNet's convolutions are missing: save torchvision's features.* as {PUBLISHED}")
    return PUBLISHED


@pytest.fixture(scope="session")
def drawn_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet's shapes that keep the scale of what passes through."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the train extra: pip install 'cfgdiff[train]'")
    rng, tensors = np.random.default_rng(0), {}
    for layer, (shape, *_) in LAYERS.items():
        tensors[f"{layer}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        tensors[f"{layer}.bias"] = rng.standard_normal(shape[0], np.float32) * np.float32(0.1)
    path = tmp_path_factory.mktemp("alexnet") / "drawn.safetensors"
    safetensors.save_file(tensors, path)
    return Path(path)
