"""The limits that timings are compared with: the machine, the speed of its matrix product, and the work in a graph."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDES, TYPES = (512, 1024, 2048), ("float32", "int8")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")  # that matter here


def describe() -> dict[str, Any]:
    """The machine, without its name."""
    import onnxruntime

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = set(named.get("flags", "").split())
    return {
        "processor": named.get("model name") or platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "instructions": " ".join(name for name in INSTRUCTIONS if name in known),
        "system": platform.system(), "python": platform.python_version(), "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }  # fmt: skip


def kinds() -> list[str]:
    """The types that `peak` can be measured for: `TYPES`, and bfloat16 where the processor has instructions for it and
    PyTorch is installed."""
    try:
        import torch

        from cfgdiff.trainer.optim import fast_bfloat16
    except ImportError:
        return [*TYPES]
    return [*TYPES, *(["bfloat16"] if fast_bfloat16(torch.device("cpu")) else [])]


def limit_of(precision: str, peaks: dict[str, float]) -> float | None:
    """The peak that a precision is compared with, None where it was not measured. Graphs in float16 compute in float32
    on CPUs."""
    return peaks.get("float32" if precision == "float16" else precision)


def _bfloat16_product(threads: int, side: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randint(0, 100, (side, side)).bfloat16() for _ in range(2))
    return lambda: (a @ b).float().numpy()


def matrix_product(kind: str, threads: int, side: int) -> Any:
    """A function that multiplies two square matrices once: float32 or int8 (into int32) in ONNX Runtime; bfloat16 in
    PyTorch, because ONNX Runtime has none on CPUs."""
    if kind == "bfloat16":
        return _bfloat16_product(threads, side)
    import onnxruntime as ort
    from onnx import TensorProto, helper

    a, b, out, node = {"float32": (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT, "MatMul"),
                       "int8": (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, "MatMulInteger"),
                       }[kind]  # fmt: skip
    shape = [side, side]
    graph = helper.make_graph(
        [helper.make_node(node, ["a", "b"], ["c"])], "product",
        [helper.make_tensor_value_info("a", a, shape), helper.make_tensor_value_info("b", b, shape)],
        [helper.make_tensor_value_info("c", out, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    types = {"float32": (np.float32, np.float32), "int8": (np.uint8, np.int8)}[kind]
    inputs = {name: rng.integers(0, 100, (side, side)).astype(t) for name, t in zip("ab", types, strict=True)}
    return lambda: session.run(["c"], inputs)[0]


def peak(kind: str, threads: int, rounds: int = 5) -> float:
    """Operations a second of the matrix product, multiplications and additions counted: the best of `rounds` at each of
    `SIDES`."""
    best = 0.0
    for side in SIDES:
        product = matrix_product(kind, threads, side)
        product()
        for _ in range(rounds):
            started = time.perf_counter()
            product()
            best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def operations(graph: Path, b: int, g: int, rows: int | None = None) -> int:
    """Multiplications and additions in the convolutions and matrix products of a guided graph, for B rows of which G
    are guided; the network computes `rows`, by default B + G."""
    import onnx
    from onnx import helper, shape_inference

    model = onnx.load(str(graph))
    for value, size in zip(model.graph.input, (b, b, b, g), strict=True):
        value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=size))
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {i.name: tuple(i.dims) for i in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in inferred.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            out, second = shapes[node.output[0]], shapes[node.input[1]]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            across = second[-1] if attributes.get("transB") else second[-2]
            # the weights of a convolution are (outputs, inputs / groups, ...)
            inner = int(np.prod(second[1:])) if node.op_type == "Conv" else across
            # shape inference does not always know the rows
            first = out[0] or (b + g if rows is None else rows)
            total += 2 * first * int(np.prod(out[1:])) * inner
    return total
