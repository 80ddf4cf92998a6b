"""The float16 graph: halves where it should compute in halves, float32 where the design wants it, and answers close to
float32."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, shape_inference

from cfgdiff.export.float16 import half
from cfgdiff.export.parity import CASES, example
from cfgdiff.trainer.weights import LoadedModel


@pytest.fixture(scope="module")
def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The float16 graph of the small network."""
    return half(graph)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {i.name: i.data_type for i in graph.initializer}


def test_convolutions_compute_in_float16_and_what_needs_range_does_not(halved: onnx.ModelProto) -> None:
    found = kinds(halved)
    by_op: dict[str, set[int]] = {}
    for node in halved.graph.node:
        by_op.setdefault(node.op_type, set()).add(found[node.input[0]])
    assert by_op["MatMul"] == {TensorProto.FLOAT16}
    convs = [found[node.input[0]] for node in halved.graph.node if node.op_type == "Conv"]
    assert convs == [TensorProto.FLOAT, *[TensorProto.FLOAT16] * (len(convs) - 2), TensorProto.FLOAT]
    assert by_op["Concat"] == {TensorProto.FLOAT, TensorProto.INT64}
    for op in (
        "LayerNormalization",
        "Softmax",
        "Sin",
        "Cos",
        "Gemm",
    ):  # Gemm: embeddings of timestep and class, and modulations
        assert by_op[op] == {TensorProto.FLOAT}, op
    assert [found[v.name] for v in (*halved.graph.input, *halved.graph.output)] == [1, 1, 7, 1, 1]


def test_the_residual_stream_is_summed_in_float32(halved: onnx.ModelProto) -> None:
    found = kinds(halved)
    convolved = {n.output[0] for n in halved.graph.node if n.op_type == "Conv"}
    casts = {n.output[0] for n in halved.graph.node if n.op_type == "Cast" and n.input[0] in convolved}
    sums = [n for n in halved.graph.node if n.op_type == "Add" and set(n.input) & casts]
    assert len(sums) >= 5 and {found[n.output[0]] for n in sums} == {TensorProto.FLOAT}


def test_the_guidance_is_computed_in_float32(halved: onnx.ModelProto) -> None:
    found, (difference,) = kinds(halved), [node for node in halved.graph.node if node.op_type == "Sub"]
    assert found[difference.output[0]] == TensorProto.FLOAT


@pytest.mark.parametrize(("b", "g"), CASES)
def test_it_answers_like_float32(
    graph: onnx.ModelProto, halved: onnx.ModelProto, model: LoadedModel, b: int, g: int
) -> None:
    inputs = example(b, g, model.image_shape, 3)
    full, low = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for m in (graph, halved)
    )
    assert low.dtype == np.float32 and 0 < np.linalg.norm(low - full) / np.linalg.norm(full) < 0.01


def test_the_same_graph_gives_the_same_bytes(graph: onnx.ModelProto, halved: onnx.ModelProto) -> None:
    assert half(graph).SerializeToString(deterministic=True) == halved.SerializeToString(deterministic=True)
