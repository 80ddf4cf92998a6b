"""How far one engine is from another: by noise level, in pictures from the same noise, and in their features.

The features need no download and suit any data: they are the mean activations of the model's own convolutions for a
picture at little noise, as diffusion models are used for representations (Baranchuk et al. 2022).
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.examples import example_inputs, example_low
from cfgdiff.runtime.graph_file import CONDITION_INPUTS
from cfgdiff.runtime.noise import normals

LEVELS = range(-5, 6)  # of ln(sigma / alpha)
FEATURE_LEVEL = -1.0  # ln(sigma / alpha) at which a picture's features are taken
Watch = Callable[[int], object]


def round_robin(bundle: Bundle, n: int) -> list[str]:
    """n class names, all classes in turn."""
    return [bundle.class_names[i % len(bundle.class_names)] for i in range(n)]


def draw(engine: Engine, bundle: Bundle, n: int, watch: Watch = lambda n: None) -> np.ndarray:
    """n pictures of all classes in turn at the defaults, seed 0: (n, H, W, C) uint8. `watch` gets the batch sizes."""
    batches = []
    for _, pictures in generate(engine, bundle, round_robin(bundle, n), batch=32, low=example_low(bundle, n)):
        batches.append(pictures)
        watch(len(pictures))
    return np.concatenate(batches)


def noised(bundle: Bundle, pictures: np.ndarray, level: float, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """(x_t, t) of pictures (n, H, W, C) uint8 at ln(sigma / alpha) = level: (n, C, H, W) and (n,) float32."""
    x0 = (pictures.transpose(0, 3, 1, 2) / 127.5 - 1) / bundle.schedule.data_std
    t = bundle.schedule.t_of_ratio(np.exp(level))
    eps = normals(stream, np.arange(len(x0)), 0, bundle.image_shape).astype(np.float64)
    return bundle.schedule.noised(x0, eps, t).astype(np.float32), np.full(len(x0), t, np.float32)


def errors_by_level(a: Engine, b: Engine, bundle: Bundle, pictures: np.ndarray) -> dict[str, dict[str, float]]:
    """|a - b| / |b| of two engines at each noise level ln(sigma / alpha), for pictures (n, H, W, C) uint8, noised.

    Half of the rows are guided with the bundle's default w.

    Returns:
        {"prediction": {level: error}, "x0": {level: error}}: of the answers, and of the clean pictures they imply. At
        little noise a large error of the prediction changes x0 little; x0 is what ends up in pictures.
    """
    n, errors = len(pictures), {"prediction": dict[str, float](), "x0": dict[str, float]()}
    labels, w = np.arange(n) % len(bundle.class_names), np.full(n // 2, bundle.defaults.guidance, np.float32)
    inputs = example_inputs(bundle, n)
    for level in LEVELS:
        x_t, t = noised(bundle, pictures, level, stream=level - LEVELS[0])
        answers = [engine.predict(x_t, t, labels, w, *inputs).astype(np.float64) for engine in (a, b)]
        cleans = [bundle.schedule.to_x0(answer, x_t, float(t[0])) for answer in answers]
        for measure, (mine, theirs) in (("prediction", answers), ("x0", cleans)):
            errors[measure][f"{level:+d}"] = float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
    return errors


def features(graph: onnx.ModelProto, bundle: Bundle, pictures: np.ndarray) -> np.ndarray:
    """The mean over positions of every convolution's output, for pictures (n, H, W, C) uint8: (n, F) float64.

    Args:
        graph: the bundle's float32 graph.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    watched.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "features.axes"))
    convs = [node.output[0] for node in graph.graph.node if node.op_type == "Conv"]
    for name in convs:
        watched.graph.node.append(helper.make_node("ReduceMean", [name, "features.axes"], [f"{name}.mean"], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}.mean", TensorProto.FLOAT, None))
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    x_t, t = noised(bundle, pictures, FEATURE_LEVEL, stream=len(LEVELS))
    further = dict(zip(CONDITION_INPUTS, example_inputs(bundle, len(x_t)), strict=False))
    labels, unguided, parts = np.arange(len(x_t)) % len(bundle.class_names), np.zeros(0, np.float32), []
    for lo, hi in pairwise([*range(0, len(x_t), 32), len(x_t)]):
        inputs = {"sample": x_t[lo:hi], "timestep": t[lo:hi], "class_label": labels[lo:hi], "guidance": unguided}
        inputs |= {name: array[lo:hi] for name, array in further.items()}
        parts.append(np.concatenate(session.run([f"{name}.mean" for name in convs], inputs), axis=1))
    return np.concatenate(parts).astype(np.float64)


def feature_distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far apart pictures from the same noise are, in units of how far apart different pictures are.

    Args:
        a, b: features (n, F) of two engines' pictures; each feature is scaled by its deviation in b.

    Returns:
        mean |a_i - b_i| / mean |b_i - b_j|; 0 is equal, 1 is as different as two unrelated pictures.
    """
    scale = b.std(axis=0) + 1e-6 * np.abs(b).max()
    same = np.linalg.norm((a - b) / scale, axis=1).mean()
    other = np.linalg.norm((b - np.roll(b, 1, axis=0)) / scale, axis=1).mean()
    return float(same / max(other, 1e-12))
