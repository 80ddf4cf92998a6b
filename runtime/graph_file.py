"""Reads inputs, outputs, metadata and the files of tensors from an ONNX file, without onnx; checks the contract.

An ONNX file is a protobuf message (onnx/onnx.proto): a sequence of fields, each a number, a wire type and a value. Only
the fields that lead to a name, a shape or a location are followed; everything else is stepped over.
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

FLOAT32, INT64 = 1, 7  # element types
CONDITION_INPUTS = ("condition", "condition_noise")  # the further inputs of a super-resolution stage
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Message -> {field: message in it}, for all paths that lead to a tensor or to the graph's inputs and outputs.
FOLLOWED = {
    "model": {7: "graph", 14: "metadata", 20: "training", 25: "function"},
    "training": {1: "subgraph", 2: "subgraph"},
    "graph": {1: "node", 5: "weight", 11: "input", 12: "output", 15: "sparse"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "weight": {13: "external"},
    "tensor": {13: "external"},
}


@dataclass
class GraphFile:
    """What a graph declares.

    Attributes:
        inputs, outputs: (element type, shape) by name; a dimension that is not fixed is None.
        locations: the files, as the graph names them, of tensors outside the graph's own file.
    """

    inputs: dict[str, tuple[int, list[int | None]]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, list[int | None]]] = field(default_factory=dict)
    locations: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)


def read_graph(data: bytes) -> GraphFile:
    """Read an ONNX file from its bytes. Raises ValueError where they are not one."""
    graph, weights = GraphFile(), set[str]()
    waiting = deque([("model", memoryview(data))])
    while waiting:
        kind, message = waiting.popleft()
        if kind in ("input", "output"):
            name, form = _value(message)
            (graph.inputs if kind == "input" else graph.outputs)[name] = form
            continue
        if kind in ("external", "metadata"):
            entry = {number: _text(text) for number, text in _fields(message)}
            key, text = entry.get(1, ""), entry.get(2, "")
            if kind == "metadata":
                graph.metadata[key] = text
            elif key == "location":
                graph.locations.add(text)
            continue
        for number, value in _fields(message):
            if kind == "weight" and number == 8:
                weights.add(_text(value))
            elif (inner := FOLLOWED[kind].get(number)) is not None:
                waiting.append((inner, _message(value)))
    for name in weights & graph.inputs.keys():  # old files list weights among the inputs
        del graph.inputs[name]
    return graph


def contradiction(
    graph: GraphFile, image_shape: tuple[int, int, int], classes: int, takes_condition: bool = False
) -> str:
    """Where a graph contradicts the contract for such pictures and classes, in words; empty where nowhere."""
    pictures, row = (FLOAT32, 4), (FLOAT32, 1)
    inputs = {"sample": pictures, "timestep": row, "class_label": (INT64, 1), "guidance": row}
    if takes_condition:
        inputs |= dict(zip(CONDITION_INPUTS, (pictures, row), strict=True))
    sides = (("inputs", graph.inputs, inputs), ("outputs", graph.outputs, {"prediction": pictures}))
    for side, values, expected in sides:
        if {name: (kind, len(shape)) for name, (kind, shape) in values.items()} != expected:
            names = f"its {side} are {', '.join(values) or 'none'}; expected {', '.join(expected)}"
            return f"{names}, of the ranks and types of the contract"
    for name, (_, (batch, *shape)) in (graph.inputs | graph.outputs).items():
        if batch is not None:
            return f"{name} is for a batch of {batch} alone; expected any"
        if shape and any(size not in (None, wanted) for size, wanted in zip(shape, image_shape, strict=True)):
            return f"{name} is of pictures {tuple(shape)}, expected image_shape {image_shape}"
    try:
        class_names = json.loads(graph.metadata.get("class_names", "null"))
        n = len(class_names) if class_names else classes
    except (TypeError, ValueError, RecursionError):
        return "its metadata class_names are no list in JSON"
    return "" if n == classes else f"it is of {n} classes, expected {classes} by class_names"


def _value(message: memoryview) -> tuple[str, tuple[int, list[int | None]]]:
    """(name, (element type, shape)) of a ValueInfoProto that is a tensor."""
    name, kind, shape = "", 0, list[int | None]()
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for tensor_number, tensor in _fields(_message(value)):
                for part, entry in _fields(_message(tensor)) if tensor_number == 1 else ():
                    if part == 1 and isinstance(entry, int):
                        kind = entry
                    elif part == 2:
                        dims = (dim for dim_number, dim in _fields(_message(entry)) if dim_number == 1)
                        shape = [
                            next((v for n, v in _fields(_message(dim)) if n == 1 and isinstance(v, int)), None)
                            for dim in dims
                        ]
    return name, (kind, shape)


def _fields(message: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """(number, value) of each field; the value of a fixed-size number, which is not needed here, is 0."""
    at, end = 0, len(message)
    while at < end:
        key = message[at]
        if key < 128:  # most keys and sizes are one byte: a third of the time
            at += 1
        else:
            key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            if at < end and (size := message[at]) < 128:
                at += 1
            else:
                size, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > end:
            raise ValueError("cut short")
        yield number, message[at : at + size] if wire == BYTES else 0
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("cut short")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _message(value: "int | memoryview") -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def _text(value: "int | memoryview") -> str:
    return str(_message(value), "utf-8")
