"""All precisions, in one table: the limits of their certificates, and how variants are derived from float32.

A new precision is one file that derives its graph and one entry in `PRECISIONS`. A precision without `derive` is an
engine's own way to compute another variant (`EngineEntry.own_precisions`). Heavy packages are imported when a graph is
derived, as `--help` reads the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Calls = Callable[[], Sequence[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Limits:
    """A certificate's largest errors, relative (None allows any) and as a share of the distance between unrelated
    pictures; and its least decibels."""

    rows: float
    prediction: float | None
    x0: float
    psnr_db: float
    features: float


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        derive: (float32 graph, a function that gives the inputs of its calls while it draws) -> the variant's graph.
        for_tensorrt: the variant's graph -> the one that TensorRT takes. None: the same.
        flag: that adds the variant in `cfgdiff export`.
        help: of that flag.
    """

    limits: Limits
    derive: Callable[[ModelProto, Calls], ModelProto] | None = None
    for_tensorrt: Callable[[ModelProto], ModelProto] | None = None
    flag: str = ""
    help: str = ""


def _half(graph: ModelProto, calls: Calls) -> ModelProto:
    from .float16 import half

    return half(graph)


def _int8(graph: ModelProto, calls: Calls) -> ModelProto:
    from .quantise import int8

    return int8(graph, calls())


def _symmetric(graph: ModelProto) -> ModelProto:
    from .quantise import symmetric

    return symmetric(graph)


PRECISIONS = {
    "float32": Precision(Limits(rows=1e-3, prediction=1e-3, x0=1e-3, psnr_db=45, features=0.02)),
    "float16": Precision(
        Limits(rows=1e-2, prediction=1e-2, x0=1e-2, psnr_db=35, features=0.05),
        _half,
        flag="--fp16",
        help="Add a variant that computes in float16, for GPUs.",
    ),
    "bfloat16": Precision(Limits(rows=0.05, prediction=None, x0=0.05, psnr_db=28, features=0.2)),
    "int8": Precision(
        Limits(rows=0.05, prediction=None, x0=0.1, psnr_db=28, features=0.2),
        _int8,
        _symmetric,
        flag="--int8",
        help="Add a variant with convolutions in int8: smaller and, on CPUs, faster, a little less exact.",
    ),
}
