"""Products of the same input become one, with the same answers and the weights' names; others stay."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from cfgdiff.export.merge import merge_products
from cfgdiff.trainer.unet import ResidualBlock
from cfgdiff.trainer.weights import LoadedModel


def _model(attributes: list[dict[str, float]]) -> onnx.ModelProto:
    """A product of x (B, 3) for each, of 2, 3, .. outputs."""
    rng, graph = np.random.default_rng(0), onnx.GraphProto(name="products")
    for k, values in enumerate(attributes):
        weight = rng.normal(size=(2 + k, 3)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight if values.get("transB") else weight.T.copy(), f"w{k}"))
        graph.initializer.append(numpy_helper.from_array(rng.normal(size=2 + k).astype(np.float32), f"b{k}"))
        graph.node.append(helper.make_node("Gemm", ["x", f"w{k}", f"b{k}"], [f"y{k}"], **values))
        graph.output.append(helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["B", 2 + k]))
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _answers(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


def test_one_product_answers_as_its_parts_did() -> None:
    model = _model([{"transB": 1}, {"transB": 1}, {"transB": 1}])
    before = _answers(model)
    merge_products(model)
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node) == {"Concat": 2, "Gemm": 1, "Split": 1}
    assert {i.name for i in model.graph.initializer} >= {"w0", "w1", "w2", "b0", "b1", "b2"}
    for found, expected in zip(_answers(model), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_products_of_another_form_stay() -> None:
    model = _model([{"transB": 1}, {"transB": 0}, {"transB": 1, "alpha": 0.5}])
    before = model.SerializeToString(deterministic=True)
    merge_products(model)
    assert model.SerializeToString(deterministic=True) == before


def test_the_modulations_of_all_blocks_are_one_product(graph: onnx.ModelProto, model: LoadedModel) -> None:
    blocks = sum(isinstance(m, ResidualBlock) for m in model.network.modules())
    split = next(node for node in graph.graph.node if node.op_type == "Split" and len(node.output) == blocks)
    products = [node for node in graph.graph.node if node.op_type == "Gemm"]
    assert len(products) == 3 and split.input[0] in {
        node.output[0] for node in products
    }  # the two of the timestep's embedding, and it
