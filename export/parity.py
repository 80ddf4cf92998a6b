"""Compares the exported float32 graph with PyTorch, for critical batch sizes; and measures a bundle's losses."""

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.graph_file import CONDITION_INPUTS
from cfgdiff.trainer.objective import held_out_loss, rate
from cfgdiff.trainer.super_resolution import held_out_inputs

from .fold import exported, takes_condition

CASES = [(1, 0), (1, 1), (5, 3), (8, 8), (64, 10)]  # (B, G)
# Of the largest value. PyTorch itself loses up to 1.4e-4 in float32, for white noise at a timestep of little noise.
LIMIT = 1e-3


def example(
    b: int, g: int, image_shape: tuple[int, int, int], classes: int, further: bool = False
) -> dict[str, np.ndarray]:
    """Inputs of the graph with different t, label and w in every row; `further`: those of a super-resolution stage."""
    rng = np.random.Generator(np.random.PCG64([b, g]))
    inputs: dict[str, np.ndarray] = {
        "sample": rng.standard_normal((b, *image_shape), np.float32),
        "timestep": rng.uniform(1, 1000, b).astype(np.float32),
        "class_label": rng.integers(0, classes, b),
        "guidance": rng.uniform(1, 4, g).astype(np.float32),
    }
    if further:
        picture, noise = rng.standard_normal((b, *image_shape), np.float32), rng.uniform(0, 500, b)
        inputs |= dict(zip(CONDITION_INPUTS, (picture, noise.astype(np.float32)), strict=True))
    return inputs


@torch.no_grad()
def relative_error(a: nn.Module, b: "nn.Module | ort.InferenceSession", inputs: dict[str, np.ndarray]) -> float:
    """max |a - b| / max |a| for one set of inputs."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    expected = a(**tensors).numpy()
    actual = b(**tensors).numpy() if isinstance(b, nn.Module) else b.run(None, inputs)[0]
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() + 1e-12))


def check_graph(graph: bytes, network: nn.Module, null_class: int, image_shape: tuple[int, int, int]) -> float:
    """The largest relative error over `CASES`. Raises `Failure` above `LIMIT`, naming the case."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    guided, worst = exported(network, null_class).eval(), 0.0
    for b, g in CASES:
        error = relative_error(guided, session, example(b, g, image_shape, null_class, takes_condition(network)))
        if not error <= LIMIT:
            problem = f"differs from PyTorch by {error:.1e} at (B, G) = ({b}, {g}), limit {LIMIT:.0e}"
            raise Failure(f"the exported graph {problem}: nothing written")
        worst = max(worst, error)
    return worst


def bundle_measures(engine: Engine, bundle: Bundle, pictures: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`test_loss` and `rate` of a bundle on its engine, for pictures (N, C, H, W) uint8 and labels (N,) int64."""

    def predict(x_t: Tensor, t: Tensor, label: Tensor, *inputs: Tensor) -> Tensor:
        rows, further = (x_t.numpy(), t.numpy(), label.numpy()), (value.numpy() for value in inputs)
        return torch.from_numpy(engine.predict(*rows, np.zeros(0, np.float32), *further))

    held_out = predict, bundle.schedule, pictures, labels, held_out_inputs(bundle.condition, bundle.schedule)
    return {"test_loss": held_out_loss(*held_out), "rate": rate(*held_out)}
