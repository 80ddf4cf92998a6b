"""The graph in int8: static quantisation of its wide convolutions, as QuantizeLinear and DequantizeLinear around them
(QDQ).

Quantised are the convolutions wider than 1x1, but for the first and the last. All of them read an activation, so that
rounding its result costs no pass of its own: engines fuse SiLU, a product with a constant per channel, and
QuantizeLinear. The 1x1 convolutions read the residual stream, which would be read and written once more for few
products, with the largest of all ranges. Nothing is rounded at concatenations and residual sums, so that convolution
and sum still fuse. What an engine makes of a convolution:

* OpenVINO (AMX, VNNI) takes integers and gives floats, to which it adds the residual. Rounding the result would only
  cost it passes and exactness: its engine takes those pairs away when it loads the graph.
* ONNX Runtime computes in integers only where the result is rounded, too (QLinearConv); in float32 else, slower than
  the float32 graph. So results are rounded, in steps of 1: a product with a constant per channel behind it makes them
  what they were.
* TensorRT takes signed integers without zero points and gives floats: see `symmetric`.

Channels of an activation differ in range, and one scale for all would waste most of the 8 bits of most channels. So
each is scaled by sqrt(|weights that read it| / its peak), and those weights by the inverse (SmoothQuant, Xiao et al.
2023, alpha = 0.5). Activations are uint8 with a zero point, as SiLU's values lie almost all on one side; weights int8
by output channel. Ranges come from what the convolutions see on guided trajectories of this very model.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.engine import WrappedEngine

from .compare import round_robin
from .edit import replace_nodes, store_half, unpacked

Inputs = dict[str, np.ndarray]
OUTSIDE = 1e-5  # share of an activation's values that may lie beyond each end of its range: the 99.999th percentile
WEIGHT_MOST = 63  # 7 bits: two products of 8-bit weights overflow the 16-bit sums of processors without VNNI
MIDDLE = 128  # the zero point of convolutions' results
LEAST = 1e-8  # no range is smaller


def int8(model: onnx.ModelProto, calls: Sequence[Inputs]) -> onnx.ModelProto:
    """The graph with its wide convolutions but the first and the last in int8; everything else stays as it is.

    Args:
        model: the float32 graph.
        calls: inputs of the graph to take the ranges from, all noise levels among them.
    """
    model = unpacked(model)
    widths = {i.name: i.dims[-1] for i in model.graph.initializer if len(i.dims) == 4}
    convs = [node for node in model.graph.node if node.op_type == "Conv"][1:-1]
    chosen = {node.output[0] for node in convs if widths[node.input[1]] > 1}
    read = {node.input[0] for node in convs if node.output[0] in chosen}
    peaks = channel_peaks(model, read | chosen, calls)
    _balance(model, chosen, peaks)
    ranges = tensor_ranges(model, {_balanced(name) for name in chosen}, calls)
    rewriter = _Rewriter(model)
    for node in list(model.graph.node):
        if node.output[0] in chosen:
            y = node.output[0]
            rewriter.convolution(node, ranges[_balanced(y)], (peaks[y] / (MIDDLE - 1)).clip(LEAST))
        else:
            rewriter.nodes.append(node)
    replace_nodes(model, rewriter.nodes)
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def symmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the int8 graph as TensorRT takes it: no zero points, float biases, and results of convolutions that are
    not rounded.

    A signed integer spends half of its values on a side where SiLU's hardly are: the same range in steps of nearly
    twice the size.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made, stored = {node.output[0]: node for node in copy.graph.node}, {i.name: i for i in copy.graph.initializer}
    names, nodes = dict[str, str](), list[onnx.NodeProto]()  # values that replace removed ones
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear" and made[node.input[0]].op_type == "Conv":
            names[node.output[0]] = node.input[0]
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in names:
            names[node.output[0]] = names[node.input[0]]
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (numpy_helper.to_array(stored[name]) for name in node.input[1:])
        if node.op_type == "DequantizeLinear" and zero.dtype == np.int32:
            bias = stored[node.input[0]]
            bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) * scale).astype(np.float32), bias.name))
            names[node.output[0]] = bias.name
            continue
        if node.op_type == "QuantizeLinear":
            reach = max(int(zero), 255 - int(zero))
            for name, array in zip(node.input[1:], (np.float32(scale * reach / 127), np.int8(0)), strict=True):
                stored[name].CopyFrom(numpy_helper.from_array(np.array(array), name))
        node.input[:] = [names.get(name, name) for name in node.input]
        nodes.append(node)
    replace_nodes(copy, nodes)
    onnx.checker.check_model(copy, full_check=True)
    return copy


class _Rewriter:
    """Writes the new list of nodes, and adds what they need to the graph's weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes, self._graph = list[onnx.NodeProto](), model.graph
        self._stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}

    def convolution(self, node: onnx.NodeProto, bounds: tuple[float, float], steps: np.ndarray) -> None:
        """Round the input, the weights and the result of a convolution to integers.

        Args:
            bounds: the range of its input.
            steps: the unit of its result, (outputs,).
        """
        x, y, weight = node.input[0], node.output[0], self._stored[node.input[1]]
        lo, hi = min(bounds[0], 0.0), max(bounds[1], 0.0)
        x_scale = np.float32(max(hi - lo, LEAST) / 255)
        bias = self._stored[node.input[2]] if len(node.input) == 3 else np.zeros(len(weight), np.float32)
        w_scale = np.abs(weight).reshape(len(weight), -1).max(axis=1) / WEIGHT_MOST
        w_scale = np.maximum(w_scale, np.abs(bias) / x_scale / 2**30).clip(LEAST)  # biases are int32
        self._through(x, f"{y}.quantised", x_scale, np.rint(-lo / x_scale))
        inputs = [f"{y}.quantised", self._fixed(f"{y}.weight", weight, w_scale, w_scale / steps, np.int8)]
        if len(node.input) == 3:
            inputs.append(self._fixed(f"{y}.bias", bias, x_scale * w_scale, x_scale * w_scale / steps, np.int32))
        node.input[:], node.output[:] = inputs, [f"{y}.exact"]
        self.nodes.append(node)
        self._through(f"{y}.exact", f"{y}.rounded", np.float32(1), np.float32(MIDDLE))
        self._add("Mul", [f"{y}.rounded", self._constant(f"{y}.steps", steps[:, None, None].astype(np.float32))], y)

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", axis=axis))

    def _through(self, name: str, target: str, scale: np.float32, zero: np.floating) -> None:
        """Round the tensor `name` to uint8 and back, into `target`."""
        grid = [
            self._constant(f"{target}.scale", np.array(scale)),
            self._constant(f"{target}.zero", np.array(zero, np.uint8)),
        ]
        self._add("QuantizeLinear", [name, *grid], f"{target}.integers")
        self._add("DequantizeLinear", [f"{target}.integers", *grid], target)

    def _fixed(self, name: str, array: np.ndarray, scale: np.ndarray, meaning: np.ndarray, kind: type) -> str:
        """Store weights (outputs, ..) as integers in units of `scale` (outputs,), to be read in units of `meaning`.
        Returns the name of the values."""
        integers = np.rint(array / scale.reshape(-1, *[1] * (array.ndim - 1))).astype(kind)
        grid = [
            self._constant(f"{name}.scale", meaning.astype(np.float32)),
            self._constant(f"{name}.zero", np.zeros(len(scale), kind)),
        ]
        self._add(
            "DequantizeLinear", [self._constant(f"{name}.integers", integers), *grid], f"{name}.dequantised", axis=0
        )
        return f"{name}.dequantised"


def _balanced(y: str) -> str:
    """The name of the input of the convolution with the result `y`."""
    return f"{y}.balanced"


def _balance(model: onnx.ModelProto, chosen: set[str], peaks: dict[str, np.ndarray]) -> None:
    """Scale the channels that the `chosen` convolutions read, and their weights by the inverse."""
    stored, nodes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}, []
    for node in model.graph.node:
        if node.output[0] in chosen:
            x, y, weight = node.input[0], node.output[0], stored[node.input[1]]
            reads = np.sqrt(np.square(weight).sum(axis=(0, 2, 3)))  # (inputs,)
            factors = np.sqrt(reads.clip(LEAST) / peaks[x].clip(LEAST)).astype(np.float32)[:, None, None]
            for name, array in ((f"{y}.factors", factors), (f"{y}.balanced_weight", weight / factors)):
                model.graph.initializer.append(numpy_helper.from_array(array, name))
            nodes.append(helper.make_node("Mul", [x, f"{y}.factors"], [_balanced(y)], name=f"Mul.{_balanced(y)}"))
            node.input[:2] = [_balanced(y), f"{y}.balanced_weight"]
        nodes.append(node)
    replace_nodes(model, nodes)


def guided_trajectories(engine: Engine, bundle: Bundle, n: int = 10, seed: int = 1) -> list[Inputs]:
    """The inputs of every network call while `engine` draws n pictures of all classes in turn, at the bundle's
    defaults."""
    recorder = _Recorder(engine)
    for _ in generate(recorder, bundle, round_robin(bundle, n), seed=seed):
        pass
    return recorder.calls


class _Recorder(WrappedEngine):
    """Keeps the inputs of all calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls = list[Inputs]()

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        """See `Engine.predict`."""
        self.calls.append({"sample": sample, "timestep": timestep, "class_label": class_label, "guidance": guidance})
        return self.engine.predict(sample, timestep, class_label, guidance)


def channel_peaks(model: onnx.ModelProto, names: set[str], calls: Iterable[Inputs]) -> dict[str, np.ndarray]:
    """The largest absolute value in each channel of each tensor (B, C, H, W) over all calls: (C,)."""
    peaks = dict[str, np.ndarray]()
    for tensors in _watched(model, names, calls):
        for name, values in tensors.items():
            peaks[name] = np.maximum(peaks.get(name, 0), np.abs(values).max(axis=(0, 2, 3)))
    return peaks


def tensor_ranges(model: onnx.ModelProto, names: set[str], calls: Iterable[Inputs]) -> dict[str, tuple[float, float]]:
    """The range of each tensor over all calls, but for the share `OUTSIDE` of its values at each end."""
    order = sorted(names)
    lowest, highest = ({name: np.zeros(0, np.float32) for name in order} for _ in range(2))
    seen = dict.fromkeys(order, 0)
    calls = list(calls)
    for tensors in _watched(model, names, calls):
        for name, values in tensors.items():
            seen[name] += values.size
            most = 1 + int(values.size * len(calls) * OUTSIDE)  # no more than these can lie outside in the end
            lowest[name] = np.sort(np.append(lowest[name], _least(values, most)))[:most]
            highest[name] = np.sort(np.append(highest[name], -_least(-values, most)))[::-1][:most]
    return {
        name: (float(lowest[name][int(seen[name] * OUTSIDE)]), float(highest[name][int(seen[name] * OUTSIDE)]))
        for name in order
    }


def _least(values: np.ndarray, n: int) -> np.ndarray:
    """The n least values, in any order."""
    return np.partition(values.ravel(), n - 1)[:n] if n < values.size else values.ravel()


def _watched(model: onnx.ModelProto, names: set[str], calls: Iterable[Inputs]) -> Iterator[Inputs]:
    """The tensors of these names in each call."""
    watched, order = onnx.ModelProto(), sorted(names)
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in order)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for call in calls:
        yield dict(zip(order, session.run(order, call), strict=True))
