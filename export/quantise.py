"""The graph in int8: static quantisation, as QuantizeLinear and DequantizeLinear around its convolutions (QDQ).

Activations are uint8 with a zero point, weights int8 by output channel, as ONNX Runtime's integer convolutions take them. Ranges come
from what the convolutions see on guided trajectories of this very model.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from cfgdiff.runtime import Bundle, Engine, generate

from .compare import round_robin
from .edit import replace_nodes, store_half, unpacked

Inputs = dict[str, np.ndarray]
OUTSIDE = 1e-5  # share of a tensor's values that may lie beyond each end of its range: the 99.999th percentile
WEIGHT_MOST = 63  # 7 bits: two products of 8-bit weights overflow the 16-bit sums of processors without VNNI


def int8(model: onnx.ModelProto, calls: Sequence[Inputs]) -> onnx.ModelProto:
    """The graph with all convolutions but the first and the last in int8; everything else stays as it is.

    Args:
        model: the float32 graph.
        calls: inputs of the graph to take the ranges from, all noise levels among them.
    """
    model = _by_branch(unpacked(model))
    convs = [node for node in model.graph.node if node.op_type == "Conv"][1:-1]
    ranges = tensor_ranges(model, {name for node in convs for name in (node.input[0], node.output[0])}, calls)
    chosen, rewriter = {node.output[0] for node in convs}, _Rewriter(model, ranges)
    for node in list(model.graph.node):
        if node.op_type == "Conv" and node.output[0] in chosen:
            rewriter.convolution(node)
        else:
            rewriter.nodes.append(node)
    replace_nodes(model, rewriter.nodes)
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Rewriter:
    """Writes the new list of nodes, and adds what they need to the graph's weights."""

    def __init__(self, model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> None:
        self.nodes, self._graph, self._ranges = list[onnx.NodeProto](), model.graph, ranges
        self._stored, self._done = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}, set[str]()

    def convolution(self, node: onnx.NodeProto) -> None:
        """The convolution between integers: its input, its weights and its output go through them."""
        x, y, weight = node.input[0], node.output[0], self._stored[node.input[1]]
        x_scale = self._through(x, f"{x}.quantised", self._ranges[x])
        w_scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1).clip(1e-8) / WEIGHT_MOST).astype(np.float32)
        inputs = [f"{x}.quantised", self._fixed(f"{y}.weight", weight, w_scale, np.int8)]
        if len(node.input) == 3:
            inputs.append(self._fixed(f"{y}.bias", self._stored[node.input[2]], x_scale * w_scale, np.int32))
        node.input[:], node.output[:] = inputs, [f"{y}.exact"]
        self.nodes.append(node)
        self._through(f"{y}.exact", y, self._ranges[y])

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", axis=axis))

    def _through(self, name: str, target: str, bounds: tuple[float, float]) -> np.float32:
        """Put the tensor `name` through uint8 into `target`, once; its scale."""
        lo, hi = min(bounds[0], 0.0), max(bounds[1], 0.0)
        scale = np.float32(max(hi - lo, 1e-8) / 255)
        if target not in self._done:
            self._done.add(target)
            zero = np.array(np.rint(-lo / scale), np.uint8)
            grid = [self._constant(f"{target}.scale", np.array(scale)), self._constant(f"{target}.zero", zero)]
            self._add("QuantizeLinear", [name, *grid], f"{target}.uint8")
            self._add("DequantizeLinear", [f"{target}.uint8", *grid], target)
        return scale

    def _fixed(self, name: str, array: np.ndarray, scale: np.ndarray, kind: type) -> str:
        """Store weights (outputs, ..) as integers, scaled by output channel; the name of the values they stand for."""
        steps = np.rint(array / scale.reshape(-1, *[1] * (array.ndim - 1))).astype(kind)
        grid = [self._constant(f"{name}.scale", scale), self._constant(f"{name}.zero", np.zeros(len(scale), kind))]
        self._add("DequantizeLinear", [self._constant(f"{name}.integers", steps), *grid], f"{name}.dequantised", axis=0)
        return f"{name}.dequantised"


def guided_trajectories(engine: Engine, bundle: Bundle, n: int = 10, seed: int = 1) -> list[Inputs]:
    """The inputs of every network call while `engine` draws n pictures of all classes in turn, at the bundle's defaults."""
    calls = list[Inputs]()

    class Recorder:
        name, precision, max_batch = engine.name, engine.precision, engine.max_batch

        def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
            calls.append({"sample": sample, "timestep": timestep, "class_label": class_label, "guidance": guidance})
            return engine.predict(sample, timestep, class_label, guidance)

        def close(self) -> None:
            """The engine inside stays open."""

    for _ in generate(Recorder(), bundle, round_robin(bundle, n), seed=seed):
        pass
    return calls


def tensor_ranges(model: onnx.ModelProto, names: set[str], calls: Iterable[Inputs]) -> dict[str, tuple[float, float]]:
    """The range of each tensor over all calls, but for the share `OUTSIDE` of its values at each end."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    order = sorted(names)
    watched.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in order)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    lowest, highest = ({name: np.zeros(0, np.float32) for name in order} for _ in range(2))
    seen = dict.fromkeys(order, 0)
    calls = list(calls)
    for call in calls:
        for name, values in zip(order, session.run(order, call), strict=True):
            seen[name] += values.size
            most = 1 + int(values.size * len(calls) * OUTSIDE)  # no more than these can lie outside in the end
            lowest[name] = np.sort(np.append(lowest[name], _least(values, most)))[:most]
            highest[name] = np.sort(np.append(highest[name], -_least(-values, most)))[::-1][:most]
    return {name: (float(lowest[name][int(seen[name] * OUTSIDE)]), float(highest[name][int(seen[name] * OUTSIDE)])) for name in order}


def _least(values: np.ndarray, n: int) -> np.ndarray:
    """The n least values, in any order."""
    return np.partition(values.ravel(), n - 1)[:n] if n < values.size else values.ravel()


def _by_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions of a concatenation become sums of convolutions of its parts, so that each part has a range of its own."""
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "Concat"}
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if not (node.op_type == "Conv" and node.input[0] in made):
            nodes.append(node)
            continue
        y, parts = node.output[0], list(made[node.input[0]].input)
        pieces = np.split(stored[node.input[1]], np.cumsum(_widths(model, parts))[:-1], axis=1)  # (outputs, width, h, w) each
        for i, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
            weight = f"{node.input[1]}.{i}"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(piece), weight))
            bias = list(node.input[2:]) if i == 0 else []
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name, copy.input[:], copy.output[:] = f"{node.name}.{i}", [part, weight, *bias], [f"{y}.{i}"]
            nodes.append(copy)
        nodes.append(helper.make_node("Sum", [f"{y}.{i}" for i in range(len(parts))], [y], name=f"sum.{y}"))
    replace_nodes(model, nodes)
    return model


def _widths(model: onnx.ModelProto, names: list[str]) -> list[int]:
    """Channels of the tensors."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.input)}
    return [shapes[name][1].dim_value for name in names]
