"""Changes to a graph that every precision needs: weights in and out of float16, nodes, metadata. No PyTorch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cfgdiff.runtime.bundle import FORMAT_VERSION
from cfgdiff.runtime.schedule import Schedule

from .recipe import inputs, recipe

SMALL = 1024  # weights with fewer elements stay float32


def store_half(model: onnx.ModelProto) -> None:
    """Big float32 weights become float16 with a Cast behind them, which engines fold when they load the graph."""
    casts, cast_names = [], {}
    for i in model.graph.initializer:
        if i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) >= SMALL:
            i.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(i).astype(np.float16), i.name))
            cast_names[i.name] = f"{i.name}.float32"
            cast = helper.make_node(
                "Cast", [i.name], [f"{i.name}.float32"], f"cast.{i.name}", to=onnx.TensorProto.FLOAT
            )
            casts.append(cast)
    for node in model.graph.node:
        node.input[:] = [cast_names.get(name, name) for name in node.input]
    replace_nodes(model, [*casts, *model.graph.node])


def with_description(model: onnx.ModelProto, description: dict[str, Any], precision: str) -> onnx.ModelProto:
    """A copy with bundle.json's description of the model in its metadata, and how to draw with the graph alone."""
    schedule, classes = Schedule(**description["schedule"]), len(description["class_names"])
    defaults = description["defaults"]
    factor = description.get("condition", {}).get("factor")
    described = inputs(classes, schedule.T, description.get("guidance_input"), factor)
    metadata = {"model": description["name"], "precision": precision}
    metadata |= {key: json.dumps(description[key]) for key in ("class_names", "image_shape", "schedule", "defaults")}
    folded = "guidance_input" in description
    metadata["guidance"] = (
        "an input of the network" if folded else "inside: the first G rows are uncond + w (cond - uncond)"
    )
    metadata["null_class"] = str(classes)
    steps, few = defaults.get("steps", 20), description.get("few_steps")
    timesteps = {int(n): fitted["timesteps"] for n, fitted in description["fitted"].items()}[steps] if few else None
    metadata["sampling"] = "\n".join(recipe(schedule, steps, defaults.get("guidance", 1.0), timesteps, factor))
    kept = [entry for entry in model.metadata_props if entry.key not in metadata]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in metadata.items()]
    entries += [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
    del copy.metadata_props[:]
    copy.metadata_props.extend(entries)
    copy.model_version = FORMAT_VERSION
    copy.doc_string = (
        f"{description['name']}: a class-conditional diffusion model; metadata 'sampling' says how to draw with it."
    )
    for value in (*copy.graph.input, *copy.graph.output):
        value.doc_string = described.get(value.name, "")
    return copy


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph as one file; the same model gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights that are stored as float16 are float32 again, without the casts behind them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {i.name: i for i in copy.graph.initializer}
    names, nodes = {}, []
    for node in copy.graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:
            names[node.output[0]] = node.input[0]
            tensor = stored[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        else:
            node.input[:] = [names.get(name, name) for name in node.input]
            nodes.append(node)
    replace_nodes(copy, nodes)
    return copy


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the graph's nodes by `nodes` (its own or new ones), and drop the weights that none of them reads."""
    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(i for i in model.graph.initializer if i.name in used)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.MergeFrom(graph)
