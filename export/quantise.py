"""The graph in int8: its wide convolutions between QuantizeLinear and DequantizeLinear (QDQ).

Quantised are the convolutions wider than 1x1, but for the first and the last. All of them read an activation, so
rounding it costs no extra pass: engines fuse SiLU, a product with a constant per channel, and QuantizeLinear. The 1x1
convolutions read the residual stream, which has the largest range of all, and would be read and written once more for
few products. Concatenations and residual sums are not rounded, so that convolution and sum still fuse. Engines differ:

* OpenVINO (AMX, VNNI) computes in integers and returns floats, to which it adds the residual. Rounding the results
  would cost passes and accuracy: its engine removes those pairs when it loads the graph.
* ONNX Runtime computes in integers only where the result is rounded, too (QLinearConv); else in float32, slower than
  the float32 graph. So results are rounded: divided by a step per channel in the weights, rounded to whole numbers, and
  multiplied by the steps again.
* TensorRT takes signed integers without zero points and returns floats: see `symmetric`.

The channels of an activation differ in range, and one scale for all would waste most of the 8 bits of most channels. So
each is scaled by sqrt(|weights that read it| / its peak), and those weights by the inverse (SmoothQuant, Xiao et al.
2023, alpha = 0.5). Activations are uint8 with a zero point, as almost all values of SiLU lie on one side; weights are
int8 by output channel. Ranges are taken from the convolutions' values on guided trajectories of this model.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantType

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.examples import example_low
from cfgdiff.runtime.graph_file import CONDITION_INPUTS

from .compare import round_robin
from .edit import replace_nodes, store_half, unpacked

Inputs = dict[str, np.ndarray]
OUTSIDE = 1e-5  # share of an activation's values that may lie beyond each end of its range: the 99.999th percentile
RESULT_MOST = 127  # the largest result of a convolution, in its steps
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
    wide = [node for node in convs if widths[node.input[1]] > 1]
    chosen, read = {node.output[0]: node.name for node in wide}, {node.input[0] for node in wide}
    peaks = channel_peaks(model, read | chosen.keys(), calls)
    _balance(model, set(chosen), peaks)
    ranges = tensor_ranges(model, {_balanced(name) for name in chosen}, calls)
    _scale_results(model, {name: (peaks[name] / RESULT_MOST).clip(LEAST) for name in chosen})
    model = _quantised(model, list(chosen.values()), ranges)
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _quantised(model: onnx.ModelProto, convs: list[str], ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
    """The model with these convolutions between QuantizeLinear and DequantizeLinear, by ONNX Runtime's quantiser.

    It is what `quantize_static` runs after its calibration, which we replace: that needs calls of one batch size and
    takes 9 s for the packaged model instead of 3 s. Weights have 7 bits: two products of 8-bit weights overflow the
    16-bit sums of processors without VNNI.
    """
    names = {node.name: node for node in model.graph.node}
    results = {names[conv].output[0]: (-128.0, 127.0) for conv in convs}
    limits = {name: tuple(map(np.float32, bounds)) for name, bounds in (ranges | results).items()}
    quantiser = QDQQuantizer(
        model, per_channel=True, reduce_range=True, weight_qType=QuantType.QInt8, activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits), nodes_to_quantize=convs, nodes_to_exclude=[],
        op_types_to_quantize=["Conv"], extra_options={},
    )  # fmt: skip
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    quantised: onnx.ModelProto = quantiser.model.model
    quantised.producer_name, quantised.producer_version = model.producer_name, ""
    return quantised


def symmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the int8 graph for TensorRT: without zero points and rounded results, and with float biases.

    Half of the signed values lie on a side where SiLU hardly has any: the steps are nearly twice as large.
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


def _scale_results(model: onnx.ModelProto, steps: dict[str, np.ndarray]) -> None:
    """Divide the results of convolutions by `steps` (outputs,), in their weights, and multiply by them behind."""
    stored, nodes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}, list[onnx.NodeProto]()
    for node in model.graph.node:
        nodes.append(node)
        if (y := node.output[0]) in steps:
            unit = steps[y].astype(np.float32)[:, None, None]
            arrays: dict[str, np.ndarray] = {f"{y}.steps": unit, f"{y}.weight": stored[node.input[1]] / unit[..., None]}
            if len(node.input) == 3:
                arrays[f"{y}.bias"] = stored[node.input[2]] / unit[:, 0, 0]
            model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
            node.input[1:], node.output[:] = list(arrays)[1:], [f"{y}.exact"]
            nodes.append(helper.make_node("Mul", [f"{y}.exact", f"{y}.steps"], [y], name=f"Mul.{y}"))
    replace_nodes(model, nodes)


def guided_trajectories(engine: Engine, bundle: Bundle, n: int = 10, seed: int = 1) -> list[Inputs]:
    """The inputs of every call while `engine` draws n pictures of all classes in turn, at the bundle's defaults."""
    recorder = _Recorder(engine)
    for _ in generate(recorder, bundle, round_robin(bundle, n), seed=seed, low=example_low(bundle, n)):
        pass
    return recorder.calls


class _Recorder(WrappedEngine):
    """Keeps the inputs of all calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls = list[Inputs]()

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`."""
        call = {"sample": sample, "timestep": timestep, "class_label": class_label, "guidance": guidance}
        self.calls.append(call | dict(zip(CONDITION_INPUTS, condition, strict=False)))
        return self.engine.predict(sample, timestep, class_label, guidance, *condition)


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
