"""The int8 graph: which convolutions, which ranges, and answers close to float32's."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, shape_inference

from cfgdiff.export.edit import unpacked
from cfgdiff.export.parity import CASES, example
from cfgdiff.export.quantise import OUTSIDE, WEIGHT_MOST, _by_branch, guided_trajectories, int8, tensor_ranges
from cfgdiff.runtime import Bundle, open_engine
from cfgdiff.trainer.checkpoint import LoadedModel


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


def test_all_convolutions_but_the_first_and_the_last_are_integers(graph: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    inferred = shape_inference.infer_shapes(quantised, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info} | {i.name: i.data_type for i in inferred.initializer}
    made = {node.output[0]: node for node in quantised.graph.node}
    convs = [node for node in quantised.graph.node if node.op_type == "Conv"]
    for node in convs[1:-1]:
        sources = [made[name] for name in node.input]
        assert {source.op_type for source in sources} == {"DequantizeLinear"}
        assert [kinds[source.input[0]] for source in sources] == [TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32][: len(sources)]
        assert next(n for n in quantised.graph.node if node.output[0] in n.input).op_type == "QuantizeLinear"
    assert all(made[node.input[0]].op_type != "DequantizeLinear" for node in (convs[0], convs[-1]))
    scales = [i for i in quantised.graph.initializer if i.name.endswith(".weight.scale")]
    assert all(len(numpy_helper.to_array(i)) > 1 for i in scales) and len(scales) == len(convs) - 2


def test_weights_stay_within_seven_bits(quantised: onnx.ModelProto) -> None:
    weights = [numpy_helper.to_array(i) for i in quantised.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) == 4]
    assert weights and all(np.abs(w).reshape(len(w), -1).max(axis=1).tolist() == [WEIGHT_MOST] * len(w) for w in weights)


def test_concatenations_are_convolved_by_branch_with_the_same_answer(graph: onnx.ModelProto, model: LoadedModel) -> None:
    plain, split = unpacked(graph), _by_branch(unpacked(graph))
    concatenated = {n.output[0] for n in plain.graph.node if n.op_type == "Concat"}
    assert any(n.op_type == "Conv" and n.input[0] in concatenated for n in plain.graph.node)
    assert not any(n.op_type == "Conv" and n.input[0] in concatenated for n in split.graph.node)
    inputs = example(5, 3, model.image_shape, 3)
    first, second = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0] for m in (plain, split)
    )
    np.testing.assert_allclose(first, second, atol=1e-4 * np.abs(first).max())


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
def test_it_answers_like_float32(graph: onnx.ModelProto, quantised: onnx.ModelProto, model: LoadedModel, b: int, g: int) -> None:
    inputs = example(b, g, model.image_shape, 3)
    full, low = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0] for m in (graph, quantised)
    )
    assert 0 < np.linalg.norm(low - full) / np.linalg.norm(full) < 0.1


def test_the_same_graph_gives_the_same_bytes(graph: onnx.ModelProto, quantised: onnx.ModelProto, calls: list) -> None:
    assert int8(graph, calls).SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)
