"""The int8 graph: which convolutions, which ranges, and answers close to float32's."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper, shape_inference

from cfgdiff.export.edit import unpacked
from cfgdiff.export.graph import build_graph, rounded
from cfgdiff.export.parity import CASES, example
from cfgdiff.export.quantise import (
    OUTSIDE,
    _balance,
    channel_peaks,
    guided_trajectories,
    int8,
    symmetric,
    tensor_ranges,
)
from cfgdiff.runtime import Bundle, open_engine
from cfgdiff.runtime.engine_openvino import _unrounded, import_openvino
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.unet import UNet
from cfgdiff.trainer.weights import LoadedModel


@pytest.fixture(scope="module")
def calls(small_bundle: Bundle) -> list:
    """What the small model sees on its own trajectories."""
    return guided_trajectories(open_engine(small_bundle, "cpu"), small_bundle)


@pytest.fixture(scope="module")
def quantised(graph: onnx.ModelProto, calls: list) -> onnx.ModelProto:
    """Its int8 graph."""
    return int8(graph, calls)


def test_calibration_sees_all_levels_and_both_kinds_of_rows(small_bundle: Bundle, calls: list) -> None:
    assert len(calls) == small_bundle.defaults.steps
    times = [call["timestep"][0] for call in calls]
    assert times == sorted(times, reverse=True) and times[0] == small_bundle.schedule.T
    assert {int(k) for call in calls for k in call["class_label"]} == {0, 1, 2}
    assert any(len(call["guidance"]) and (call["guidance"] == small_bundle.defaults.guidance).all() for call in calls)


def chosen(graph: onnx.ModelProto) -> list[str]:
    """The results of the convolutions that are to be integers."""
    plain = unpacked(graph).graph
    kernels = {i.name: i.dims[2:] for i in plain.initializer}
    return [
        node.output[0]
        for node in [n for n in plain.node if n.op_type == "Conv"][1:-1]
        if max(kernels[node.input[1]]) > 1
    ]


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def test_wide_convolutions_but_the_first_and_the_last_are_integers(
    graph: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    inferred = shape_inference.infer_shapes(quantised, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info} | {
        i.name: i.data_type for i in inferred.initializer
    }
    made = {node.output[0]: node for node in quantised.graph.node}
    convs = [node for node in quantised.graph.node if node.op_type == "Conv"]
    integers = [node for node in convs if node.input[0] in made and made[node.input[0]].op_type == "DequantizeLinear"]
    assert [node.output[0] for node in integers] == [f"{name}.exact" for name in chosen(graph)]
    for node in integers:
        sources = [made[name] for name in node.input]
        assert {source.op_type for source in sources} == {"DequantizeLinear"}
        assert [kinds[source.input[0]] for source in sources] == [
            TensorProto.UINT8,
            TensorProto.INT8,
            TensorProto.INT32,
        ][: len(sources)]
        assert [n.op_type for n in quantised.graph.node if node.output[0] in n.input] == ["QuantizeLinear"]
    assert 0 < len(integers) < len(convs) - 2
    scales = [numpy_helper.to_array(i) for i in quantised.graph.initializer if i.name.endswith(".weight_scale")]
    assert len(scales) == len(integers) and all(len(scale) > 1 for scale in scales)


def test_only_activations_and_results_of_convolutions_are_rounded(quantised: onnx.ModelProto) -> None:
    """Each once, so that sums and concatenations meet floats and fuse."""
    made = {node.output[0]: node for node in quantised.graph.node}
    sources = [made[node.input[0]] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    assert {source.op_type for source in sources} == {"Mul", "Conv"} and len(
        {source.output[0] for source in sources}
    ) == len(sources)
    behind = {made[source.input[0]].op_type for source in sources if source.op_type == "Mul"}
    assert behind <= {
        "Mul",
        "AveragePool",
        "Resize",
    }  # x * sigmoid(x), and what may stand between it and its convolution


def test_channels_are_balanced_without_a_change_of_the_function(
    graph: onnx.ModelProto, calls: list, model: LoadedModel
) -> None:
    plain, balanced, names = unpacked(graph), unpacked(graph), chosen(graph)
    reads = {node.output[0]: node.input[0] for node in plain.graph.node if node.op_type == "Conv"}
    peaks = channel_peaks(plain, {reads[name] for name in names}, calls)
    _balance(balanced, set(names), peaks)
    inputs = example(5, 3, model.image_shape, 3)
    np.testing.assert_allclose(run(balanced, inputs), run(plain, inputs), rtol=1e-3, atol=1e-5)
    after = channel_peaks(balanced, {f"{name}.balanced" for name in names}, calls)
    spread = [np.log(peak.clip(1e-9)).std() for peak in (*(peaks[reads[name]] for name in names), *after.values())]
    assert np.mean(spread[len(names) :]) < 0.8 * np.mean(spread[: len(names)])


def test_weights_stay_within_seven_bits(quantised: onnx.ModelProto) -> None:
    weights = [
        numpy_helper.to_array(i)
        for i in quantised.graph.initializer
        if i.data_type == TensorProto.INT8 and len(i.dims) == 4
    ]
    assert weights and all(np.abs(w).reshape(len(w), -1).max(axis=1).tolist() == [64] * len(w) for w in weights)


def test_ranges_are_percentiles_over_all_calls(graph: onnx.ModelProto, model: LoadedModel) -> None:
    plain = unpacked(graph)
    name = next(n.output[0] for n in plain.graph.node if n.op_type == "Conv")
    many = [example(b, b // 2, model.image_shape, 3) for b in (64, 60, 56)]
    watched = onnx.ModelProto()
    watched.CopyFrom(plain)
    watched.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.sort(np.concatenate([session.run([name], call)[0].ravel() for call in many]))
    k = int(len(values) * OUTSIDE)
    assert k >= 2 and tensor_ranges(plain, {name}, many)[name] == (values[k], values[-1 - k])


@pytest.mark.parametrize(("b", "g"), CASES)
def test_it_answers_like_float32(
    graph: onnx.ModelProto, quantised: onnx.ModelProto, model: LoadedModel, b: int, g: int
) -> None:
    inputs = example(b, g, model.image_shape, 3)
    full, low, signed = (run(m, inputs) for m in (graph, quantised, symmetric(quantised)))
    assert 0 < np.linalg.norm(low - full) / np.linalg.norm(full) < 0.1
    assert 0 < np.linalg.norm(signed - full) / np.linalg.norm(full) < 0.15


def test_tensorrts_graph_has_no_zero_points_and_rounds_activations_alone(quantised: onnx.ModelProto) -> None:
    found = symmetric(quantised)
    made, stored = ({node.output[0]: node for node in found.graph.node}, {i.name: i for i in found.graph.initializer})
    pairs = [node for node in found.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {stored[node.input[2]].data_type for node in pairs} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(stored[node.input[2]]).any() for node in pairs)
    assert {made[node.input[0]].op_type for node in pairs if node.op_type == "QuantizeLinear"} == {"Mul"}


def test_the_same_graph_gives_the_same_bytes(graph: onnx.ModelProto, quantised: onnx.ModelProto, calls: list) -> None:
    assert int8(graph, calls).SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)


def test_openvino_computes_these_convolutions_in_integers(graph: onnx.ModelProto, small_bundle: Bundle) -> None:
    try:
        openvino = import_openvino()
    except Failure as error:
        pytest.skip(f"needs OpenVINO: {error}")
    model = _unrounded(openvino.Core().read_model(str(small_bundle.path / small_bundle.variant("int8").graph)))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = dict[str, str]()
    for op in compiled.get_runtime_model().get_ops():
        told = {key: str(value.value) for key, value in op.get_rt_info().items()}
        if told["layerType"] == "Convolution":
            kinds |= dict.fromkeys(told["originalLayersNames"].split(","), told["runtimePrecision"])
    assert {kinds[f"Mul.{name}"] for name in chosen(graph)} <= {"u8", "i8"}
    assert not any("Quantize" in name for name in kinds)  # no result is rounded


class Plain(torch.nn.Module):
    """A network as a plugin may bring it: its first convolution reads the doubled batch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 3)))
        self.label = torch.nn.Embedding(4, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), (B,), (B,) -> (B, 3, H, W)."""
        first, middle, last = self.convs
        x = torch.nn.functional.silu(first(x) + self.label(label)[:, :, None, None] + t[:, None, None, None] / 1000)
        return last(torch.nn.functional.silu(middle(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["patch=1", "plugin"])
def test_a_first_convolution_that_reads_the_doubled_batch(which: str, model: LoadedModel) -> None:
    part = model.config.network.model_copy(
        update={"patch": 1, "multipliers": (1,), "channels": 8, "attention": (), "head_channels": 8}
    )
    torch.manual_seed(0)
    network = (Plain() if which == "plugin" else UNet(part, (3, 8, 8), 3)).eval().requires_grad_(False)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    full = build_graph(rounded(network), 3, (3, 8, 8))
    first = next(node for node in full.graph.node if node.op_type == "Conv")
    assert next(node for node in full.graph.node if node.output[0] == first.input[0]).op_type == "Concat"
    low = int8(full, [example(32, 16, (3, 8, 8), 3)])
    assert sum(node.op_type == "QuantizeLinear" for node in low.graph.node) >= 2
    for b, g in CASES[:4]:
        inputs = example(b, g, (3, 8, 8), 3)
        expected = run(full, inputs)
        assert 0 < np.linalg.norm(run(low, inputs) - expected) / np.linalg.norm(expected) < 0.1
