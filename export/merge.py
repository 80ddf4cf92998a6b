"""Merges products that read the same values into one. It knows ONNX, and nothing of the network.

Every residual block makes its scale and shift from the same embedding of timestep and class: a product of few rows
each, which takes an engine longer to start than to compute. As one product they save 5 % of a picture's time on
OpenVINO.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .edit import replace_nodes


def merge_products(model: onnx.ModelProto) -> None:
    """Replace all Gemms of weights (outputs, inputs) and a bias that read the same input by one Gemm and a Split.

    The weights keep their names: they are concatenated inside the graph, which engines do once, when they load it.
    """
    sizes = {i.name: i.dims[0] for i in model.graph.initializer if i.dims}
    alike = defaultdict[str, list[onnx.NodeProto]](list)
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and {*node.input[1:]} <= sizes.keys() and _is_linear(node):
            alike[node.input[0]].append(node)
    first, gone = dict[str, list[onnx.NodeProto]](), set[str]()
    for x, products in alike.items():
        if len(products) > 1:
            first[products[0].output[0]] = _merged(model, x, products, [sizes[node.input[1]] for node in products])
            gone |= {node.output[0] for node in products}
    nodes = list[onnx.NodeProto]()
    for node in model.graph.node:
        nodes += first.get(node.output[0], [])
        nodes += [] if node.output[0] in gone else [node]
    replace_nodes(model, nodes)


def _is_linear(node: onnx.NodeProto) -> bool:
    """Whether it is x W^T + b."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        attributes.get("transB", 0) == 1
        and attributes.get("transA", 0) == 0
        and attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
    )


def _merged(model: onnx.ModelProto, x: str, products: list[onnx.NodeProto], sizes: list[int]) -> list[onnx.NodeProto]:
    model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{x}.sizes"))
    weights, biases = ([node.input[i] for node in products] for i in (1, 2))
    outputs = [node.output[0] for node in products]
    return [
        helper.make_node("Concat", weights, [f"{x}.weights"], name=f"concat.{x}.weights", axis=0),
        helper.make_node("Concat", biases, [f"{x}.biases"], name=f"concat.{x}.biases", axis=0),
        helper.make_node("Gemm", [x, f"{x}.weights", f"{x}.biases"], [f"{x}.products"], name=f"gemm.{x}", transB=1),
        helper.make_node("Split", [f"{x}.products", f"{x}.sizes"], outputs, name=f"split.{x}", axis=1),
    ]
