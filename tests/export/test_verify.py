"""The verifier passes true engines and catches every planted fault."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from cfgdiff.export.float16 import half
from cfgdiff.export.precisions import PRECISIONS, Limits, Precision
from cfgdiff.export.verify import Reference, reference, row_errors, verify
from cfgdiff.runtime import Bundle, open_engine


class GraphEngine:
    """A graph in ONNX Runtime, bundle or not."""

    name, max_batch = "graph", 4096

    def __init__(self, graph: onnx.ModelProto, precision: str = "float32") -> None:
        self.precision = precision
        self._session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        inputs = {"sample": sample, "timestep": timestep, "class_label": class_label, "guidance": guidance}
        answer: np.ndarray = self._session.run(None, inputs)[0]
        return answer

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture(scope="module")
def against(small_bundle: Bundle) -> Reference:
    """Float32 of the small bundle."""
    return reference(open_engine(small_bundle, "cpu", "float32"), small_bundle, 16)


def test_all_true_variants_pass(small_bundle: Bundle, against: Reference) -> None:
    for precision in ("float32", "float16", "int8"):
        seen: list[int] = []
        found = verify(open_engine(small_bundle, "cpu", precision), small_bundle, against, seen.append)
        assert found.passed and not found.failures, (precision, found.failures)
        assert found.limits["psnr_db"] == PRECISIONS[precision].limits.psnr_db and sum(seen) == 16
        assert found.pictures == 16 and found.psnr_db > 28


def swapped(graph: onnx.ModelProto) -> None:
    """cond - uncond the other way round, and from the other: the roles of cond and uncond exchanged."""
    difference = next(n for n in graph.graph.node if n.op_type == "Sub" and len(n.input) == 2)
    cond, uncond = difference.input
    total = next(n for n in graph.graph.node if n.op_type == "Add" and uncond in n.input)
    difference.input[:] = [uncond, cond]
    total.input[:] = [cond if name == uncond else name for name in total.input]


def w_twice(graph: onnx.ModelProto) -> None:
    """w (w (cond - uncond))."""
    difference = next(n for n in graph.graph.node if n.op_type == "Sub" and len(n.input) == 2)
    at = next(i for i, n in enumerate(graph.graph.node) if difference.output[0] in n.input and n.op_type == "Mul")
    scaled = graph.graph.node[at]
    w = next(name for name in scaled.input if name != difference.output[0])
    again = helper.make_node("Mul", [f"{scaled.output[0]}.once", w], [scaled.output[0]])
    scaled.output[:] = [f"{scaled.output[0]}.once"]
    graph.graph.node.insert(at + 1, again)


def mixed_rows(graph: onnx.ModelProto) -> None:
    """Every row gets a little of the mean over the batch."""
    last = next(n for n in graph.graph.node if graph.graph.output[0].name in n.output)
    last.output[:] = ["own"]
    axes = onnx.numpy_helper.from_array(np.array([0]), "batch_axis")
    part = onnx.numpy_helper.from_array(np.array(0.05, np.float32), "part")
    graph.graph.initializer.extend([axes, part])
    graph.graph.node.append(helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"], keepdims=1))
    graph.graph.node.append(helper.make_node("Mul", ["mean", "part"], ["little"]))
    graph.graph.node.append(helper.make_node("Add", ["own", "little"], [graph.graph.output[0].name]))


@pytest.mark.parametrize(
    ("fault", "said"),
    [(swapped, "w = 1 against no guidance"), (w_twice, "uncond \\+ w \\(cond - uncond\\)"), (mixed_rows, "batch of 1")],
)
def test_planted_faults_are_caught_without_knowing_a_right_answer(
    small_bundle: Bundle, fault: Callable, said: str, against: Reference
) -> None:  # fmt: skip
    graph = onnx.load(str(small_bundle.path / "model.onnx"))
    fault(graph)
    engine = GraphEngine(graph)
    found = verify(engine, small_bundle, replace(against, engine=engine))  # compared with itself alone
    assert not found.passed
    assert any(re.search(said, failure) for failure in found.failures), found.failures
    assert (found.pictures, found.psnr_db) == (0, None)  # no time is spent on pictures then
    clean = row_errors(GraphEngine(onnx.load(str(small_bundle.path / "model.onnx"))), small_bundle)
    assert max(clean.values()) < 1e-5


def test_wrong_weights_are_caught_by_level_and_a_float16_overflow_too(small_bundle: Bundle, against: Reference) -> None:
    graph = onnx.load(str(small_bundle.path / "model.onnx"))
    weight = next(i for i in graph.graph.initializer if i.name == "stem.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array.ravel()[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    found = verify(GraphEngine(graph), small_bundle, against)
    assert not found.passed and any("prediction at ln(sigma / alpha)" in failure for failure in found.failures)

    class NotANumber(GraphEngine):
        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
        ) -> np.ndarray:
            return np.full_like(super().predict(sample, timestep, class_label, guidance), np.nan)

    found = verify(NotANumber(half(graph), "float16"), small_bundle, against)
    assert not found.passed and len(found.failures) > 20


def test_pictures_are_the_last_gate(small_bundle: Bundle, against: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Precision(Limits(rows=0.05, prediction=None, x0=0.1, psnr_db=90, features=1e-6))
    monkeypatch.setitem(PRECISIONS, "int8", strict)
    found = verify(open_engine(small_bundle, "cpu", "int8"), small_bundle, against)
    assert [failure.split(":")[0] for failure in found.failures] == ["pictures", "features"]
