"""AlexNet's published weights, where they are; an engine that takes its time."""

import time
from pathlib import Path

import numpy as np
import pytest

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "lpips" / "alexnet_features.safetensors"


@pytest.fixture(scope="session")
def published() -> Path:
    """AlexNet's own weights."""
    if not PUBLISHED.is_file():
        pytest.skip(f"AlexNet's convolutions are missing: save torchvision's features.* as {PUBLISHED}")
    return PUBLISHED


class Sleeper:
    """An engine that takes its time for every row."""

    name, precision, max_batch = "sleeper", "float32", 4

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds, self.calls = seconds, list[tuple[int, int]]()

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
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
