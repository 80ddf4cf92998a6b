"""Small changes of graphs: each does what it says and nothing else."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfgdiff.export.edit import replace_nodes, store_half, unpacked, with_description


def test_unpacking_is_the_inverse_of_storing(graph: onnx.ModelProto) -> None:
    plain = unpacked(graph)
    assert not any(i.data_type == TensorProto.FLOAT16 for i in plain.graph.initializer)
    assert sum(n.op_type == "Cast" for n in plain.graph.node) < sum(n.op_type == "Cast" for n in graph.graph.node)
    store_half(plain)
    assert plain.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def chain() -> onnx.ModelProto:
    """(x * one) * two."""
    nodes = [helper.make_node("Mul", ["x", "one"], ["v"]), helper.make_node("Mul", ["v", "two"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3, 2, 2]) for name in ("x", "y")]
    weights = [
        numpy_helper.from_array(np.full((3, 1, 1), value, np.float32), name) for name, value in (("one", 1), ("two", 2))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_weights_that_no_node_reads_go_with_the_nodes() -> None:
    model = chain()
    replace_nodes(model, [helper.make_node("Mul", ["x", "two"], ["y"])])
    assert [i.name for i in model.graph.initializer] == ["two"] and len(model.graph.node) == 1
    onnx.checker.check_model(model, full_check=True)


def test_a_description_replaces_an_older_one_and_leaves_the_rest() -> None:
    model = chain()
    entry = model.metadata_props.add()
    entry.key, entry.value = "same as:b.weight", "a.weight"
    told = {
        "name": "first",
        "class_names": ["a"],
        "image_shape": [3, 2, 2],
        "schedule": {"kind": "linear", "prediction": "eps"},
        "defaults": {"steps": 7},
    }
    first = with_description(model, told, "float32")
    second = with_description(first, told | {"name": "second"}, "int8")
    assert [entry.key for entry in model.metadata_props] == ["same as:b.weight"]
    found = [(entry.key, entry.value) for entry in second.metadata_props]
    assert len(found) == len(dict(found)) == 10
    assert (
        dict(found)["null_class"] == "1"
        and "as 7 or 20" in dict(found)["sampling"]
        and "eps = P" in dict(found)["sampling"]
    )
    assert (
        "beta_i = 1e-4 .. 0.02" in dict(found)["sampling"]
        and second.model_version == 1
        and second.doc_string.startswith("second: ")
    )
    assert (
        dict(found)["model"] == "second"
        and dict(found)["precision"] == "int8"
        and dict(found)["same as:b.weight"] == "a.weight"
    )
