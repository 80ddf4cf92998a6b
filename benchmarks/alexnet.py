"""AlexNet's convolutions in ONNX Runtime: pooled features for Fréchet distances, and LPIPS as a Euclidean space.

The graphs need no PyTorch; reading the weights w_c that the `lpips` package holds does.

LPIPS (Zhang et al. 2018, equation 1) is, summed over five layers, the mean over positions of sum_c w_c (a_c - b_c)^2,
where a and b are activations divided by their length over the channels. So |embed(x) - embed(y)|^2 is exactly the
distance of x and y, where embed puts sqrt(w_c / positions) a_c of all layers into one vector: one product of matrices
compares any number of pictures with any other.
"""

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfgdiff.runtime.errors import Failure

if TYPE_CHECKING:
    from onnx import NodeProto

SMALLEST = 31  # of LPIPS
SIZE, AT_ONCE = 64, 256  # at 32x32 the last three convolutions see one position: for features, pictures are made larger
# AlexNet's convolutions (torchvision's names): shape of the weights, stride, padding, and whether max pooling (3,
# stride 2) follows.
LAYERS = {
    "features.0": ((64, 3, 11, 11), 4, 2, True), "features.3": ((192, 64, 5, 5), 1, 2, True),
    "features.6": ((384, 192, 3, 3), 1, 1, False), "features.8": ((256, 384, 3, 3), 1, 1, False),
    "features.10": ((256, 256, 3, 3), 1, 1, False),
}  # fmt: skip
# Of pictures in -1 .. 1: the scaling layer of LPIPS (Zhang et al. 2018), which is ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

Weights = dict[str, np.ndarray]
Vectors = Callable[[np.ndarray], np.ndarray]


def read_weights(path: Path, flag: str) -> Weights:
    """The tensors of `LAYERS`, weight and bias, float32. Raises `Failure` where safetensors, ONNX, the file or a tensor
    is missing."""
    try:
        import onnx  # noqa: F401  the graphs below need it
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise Failure(f"{flag}: {error.name} is not installed; pip install 'cfgdiff[train]'") from None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Failure(
            f"{flag}: {path}: not readable as safetensors ({str(error).splitlines()[0]}); give AlexNet's features"
        ) from None
    weights = {}
    for layer, (shape, *_) in LAYERS.items():
        for name, expected in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            if name not in tensors or tensors[name].shape != expected:
                given = tensors[name].shape if name in tensors else "none"
                raise Failure(
                    f"{flag}: {path}: expected a tensor {name} {expected}, found {given}; give torchvision's AlexNet"
                )
            weights[name] = tensors[name].astype(np.float32)
    return weights


def find_weights(path: Path | None, flag: str = "--alexnet") -> Weights:
    """The weights in the file, or, without a file, torchvision's, fetched once. Raises `Failure` where they are not
    available."""
    if path is not None:
        return read_weights(path, flag)
    try:
        from torchvision.models import AlexNet_Weights

        tensors = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except ImportError as error:
        raise Failure(
            f"{flag}: no FILE, and {error.name} is not installed; pip install 'cfgdiff[train]', or give the file"
        ) from None
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        raise Failure(
            f"{flag}: no FILE, and torchvision's weights cannot be fetched ({error}); connect once, or give the file"
        ) from None
    return {name: tensors[name].numpy() for layer in LAYERS for name in (f"{layer}.weight", f"{layer}.bias")}


def weights_digest(weights: Weights) -> str:
    """sha256 of the tensors, in hexadecimal: the same for the same weights, wherever they come from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def read_linear() -> list[np.ndarray]:
    """The weights w_c of LPIPS v0.1 for AlexNet's five layers, (C,) float32 >= 0, out of the installed `lpips` package.

    Raises:
        Failure: PyTorch or lpips is not installed.
    """
    spec = find_spec("lpips")
    try:
        import torch
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise Failure("lpips is not installed; pip install 'cfgdiff[train]'")
    tensors = torch.load(
        Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )
    return [tensors[f"lin{k}.model.1.weight"].numpy().ravel() for k in range(len(LAYERS))]


def _convolutions(last: str) -> list["NodeProto"]:
    """Nodes of the five convolutions on the value `last`; their activations are named after them, with .relu behind."""
    from onnx import helper

    nodes = []
    for layer, (_, stride, padding, pooled) in LAYERS.items():
        names = [last, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Conv", names, [f"{layer}.conv"], strides=[stride] * 2, pads=[padding] * 4))
        nodes.append(helper.make_node("Relu", [f"{layer}.conv"], [last := f"{layer}.relu"]))
        if pooled:
            nodes.append(helper.make_node("MaxPool", [last], [f"{layer}.pool"], kernel_shape=[3, 3], strides=[2, 2]))
            last = f"{layer}.pool"
    return nodes


def _graph(
    before: list["NodeProto"], after: list["NodeProto"], weights: Weights, constants: Weights, width: int
) -> bytes:
    """`before`, the scaling of LPIPS, the convolutions and `after` as a graph: pictures (B, 3, H, W) float32 -> vectors
    (B, width)."""
    from onnx import TensorProto, helper, numpy_helper

    scaling = {
        "shift": np.array(SHIFT, np.float32).reshape(1, 3, 1, 1),
        "scale": np.array(SCALE, np.float32).reshape(1, 3, 1, 1),
    }
    nodes = [*before, helper.make_node("Sub", ["resized" if before else "pictures", "shift"], ["shifted"]),
             helper.make_node("Div", ["shifted", "scale"], ["scaled"]), *_convolutions("scaled"), *after]  # fmt: skip
    inputs = [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["B", 3, "H", "W"])]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["B", width])]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights | scaling | constants).items()]
    graph = helper.make_graph(nodes, "alexnet", inputs, outputs, stored)
    # opset 18 and its IR version: the newest that onnx writes may be too new for ONNX Runtime
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def pooled(weights: Weights) -> bytes:
    """A graph of the features: the means over all positions of the last convolution's activations, (B, 256), at
    64x64."""
    from onnx import helper

    resize = helper.make_node("Resize", ["pictures", "", "", "size"], ["resized"], mode="linear", axes=[2, 3],
                              coordinate_transformation_mode="half_pixel")  # fmt: skip
    mean = [
        helper.make_node("GlobalAveragePool", ["features.10.relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["vectors"]),
    ]
    return _graph([resize], mean, weights, {"size": np.array([SIZE, SIZE], np.int64)}, 256)


def embedding(weights: Weights, linear: list[np.ndarray], height: int, width: int) -> bytes:
    """A graph of LPIPS's embedding of pictures of this size, (B, F): squared Euclidean distances of its vectors are
    LPIPS.

    Raises:
        Failure: the pictures are so small that nothing reaches the last convolution.
    """
    from onnx import helper

    if min(height, width) < SMALLEST:
        raise Failure(
            f"LPIPS: for AlexNet, expected pictures of at least {SMALLEST}x{SMALLEST}, found {height}x{width}"
        )

    nodes, total = [], 0
    constants: Weights = {"axes": np.array([1], np.int64), "epsilon": np.array(1e-10, np.float32)}
    parts = []
    for (layer, (shape, stride, padding, pooling)), w in zip(LAYERS.items(), linear, strict=True):
        height, width = ((n + 2 * padding - shape[2]) // stride + 1 for n in (height, width))
        constants[f"{layer}.linear"] = np.sqrt(w / (height * width)).astype(np.float32).reshape(1, -1, 1, 1)
        activation = f"{layer}.relu"
        nodes += [
            helper.make_node("ReduceL2", [activation, "axes"], [f"{layer}.length"], keepdims=1),
            helper.make_node("Add", [f"{layer}.length", "epsilon"], [f"{layer}.divisor"]),
            helper.make_node("Div", [activation, f"{layer}.divisor"], [f"{layer}.unit"]),
            helper.make_node("Mul", [f"{layer}.unit", f"{layer}.linear"], [f"{layer}.weighted"]),
            helper.make_node("Flatten", [f"{layer}.weighted"], [f"{layer}.flat"]),
        ]
        parts.append(f"{layer}.flat")
        total += shape[0] * height * width
        if pooling:
            height, width = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    nodes.append(helper.make_node("Concat", parts, ["vectors"], axis=1))
    return _graph([], nodes, weights, constants, total)


def open_vectors(graph: bytes, threads: int | None = None) -> Vectors:
    """A function from pictures (N, H, W, 3) uint8 to the graph's vectors, (N, F) float32."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def vectors(pictures: np.ndarray) -> np.ndarray:
        parts = (pictures[first : first + AT_ONCE] for first in range(0, len(pictures), AT_ONCE))
        inputs = (
            np.ascontiguousarray(part.transpose(0, 3, 1, 2) / np.float32(127.5) - 1, np.float32) for part in parts
        )
        return np.concatenate([session.run(["vectors"], {"pictures": part})[0] for part in inputs])

    return vectors
