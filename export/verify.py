"""What was exported against PyTorch, in ONNX Runtime: predictions over the batch sizes where folds go wrong, and pictures."""

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.noise import normals
from cfgdiff.trainer.objective import test_loss

from .fold import GuidedNetwork

CASES = [(1, 0), (1, 1), (5, 3), (8, 8), (64, 10)]  # (B, G)
LEVELS = range(-5, 6)  # of ln(sigma / alpha)
LIMIT = 1e-4  # relative to the largest absolute value of PyTorch's answer


def example(b: int, g: int, image_shape: tuple[int, int, int], classes: int) -> dict[str, np.ndarray]:
    """Inputs of the graph with different t, label and w in every row."""
    rng = np.random.Generator(np.random.PCG64([b, g]))
    return {
        "sample": rng.standard_normal((b, *image_shape), np.float32),
        "timestep": rng.uniform(1, 1000, b).astype(np.float32),
        "class_label": rng.integers(0, classes, b),
        "guidance": rng.uniform(0, 4, g).astype(np.float32),
    }


@torch.no_grad()
def relative_error(a: nn.Module, b: "nn.Module | ort.InferenceSession", inputs: dict[str, np.ndarray]) -> float:
    """max |a - b| / max |a| for one set of inputs."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    expected = a(**tensors).numpy()
    found = b(**tensors).numpy() if isinstance(b, nn.Module) else b.run(None, inputs)[0]
    return float(np.abs(found - expected).max() / (np.abs(expected).max() + 1e-12))


def check_graph(graph: bytes, network: nn.Module, null_class: int, image_shape: tuple[int, int, int]) -> float:
    """The largest relative error over `CASES`. Raises `Failure` above `LIMIT`, naming the case."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    guided, worst = GuidedNetwork(network, null_class).eval(), 0.0
    for b, g in CASES:
        error = relative_error(guided, session, example(b, g, image_shape, null_class))
        if not error <= LIMIT:
            raise Failure(
                f"the exported graph differs from PyTorch by {error:.1e} at (B, G) = ({b}, {g}), limit {LIMIT:.0e}: nothing written"
            )
        worst = max(worst, error)
    return worst


def errors_by_level(a: Engine, b: Engine, bundle: Bundle, n: int = 16) -> dict[str, float]:
    """|a - b| / |b| of two engines' predictions at each noise level ln(sigma / alpha), on n pictures that b draws, noised.

    Half of the rows are guided with the bundle's default w.
    """
    schedule, classes = bundle.schedule, [bundle.class_names[i % len(bundle.class_names)] for i in range(n)]
    drawn = np.concatenate([pictures for _, pictures in generate(b, bundle, classes, min(20, bundle.defaults.steps))])
    x0 = (drawn.transpose(0, 3, 1, 2) / 127.5 - 1) / schedule.data_std  # (n, C, H, W)
    labels, w = np.arange(n) % len(bundle.class_names), np.full(n // 2, bundle.defaults.guidance, np.float32)
    found = {}
    for level in LEVELS:
        t = schedule.t_of_ratio(np.exp(level))
        eps = normals(level - LEVELS[0], np.arange(n), 0, bundle.image_shape)
        x_t = (schedule.alpha(t) * x0 + schedule.sigma(t) * eps).astype(np.float32)
        answers = [e.predict(x_t, np.full(n, t, np.float32), labels, w).astype(np.float64) for e in (a, b)]
        found[f"{level:+d}"] = float(np.linalg.norm(answers[0] - answers[1]) / np.linalg.norm(answers[1]))
    return found


def picture_psnr(a: Engine, b: Engine, bundle: Bundle, n: int = 16) -> float:
    """How alike the pictures of two engines are: the peak signal-to-noise ratio in dB over n pictures of all classes in turn.

    At the bundle's defaults, but 20 steps at most. One grey level everywhere is 48 dB; equal pictures are put at 100.
    """
    classes, steps = [bundle.class_names[i % len(bundle.class_names)] for i in range(n)], min(20, bundle.defaults.steps)
    first, second = (np.concatenate([pictures for _, pictures in generate(e, bundle, classes, steps)]).astype(np.float64) for e in (a, b))
    return float(min(100.0, 10 * np.log10(255**2 / max(1e-9, np.square(first - second).mean()))))


def bundle_loss(engine: Engine, bundle: Bundle, pictures: np.ndarray, labels: np.ndarray) -> float:
    """`test_loss` of a bundle as its engine runs it, on pictures (N, C, H, W) uint8 with labels (N,) int64."""

    def predict(x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.from_numpy(engine.predict(x_t.numpy(), t.numpy(), label.numpy(), np.zeros(0, np.float32)))

    return test_loss(predict, bundle.schedule, pictures, labels)
