"""AlexNet's weights, drawn and published; an engine that takes its time."""

import time
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


class Sleeper:
    """An engine that takes its time for every row."""

    name, precision, max_batch = "sleeper", "float32", 4

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds, self.calls = seconds, list[tuple[int, int]]()

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """Half of the sample."""
        self.calls.append((len(sample), len(guidance)))
        time.sleep(self.seconds * (len(sample) + len(guidance)))
        return sample * np.float32(0.5)

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def sleeper() -> type[Sleeper]:
    """An engine that takes its time, to be made."""
    return Sleeper
