"""OpenVINO on the CPU. It is imported when an engine is opened, not before.

A few rows are computed by all threads together, many are shared out among them.
"""

import importlib
import sys
import threading
from functools import cache
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import Failure
from .inputs import check_inputs
from .threads import shares

BFLOAT16 = "bfloat16"  # a way to compute the float32 graph, of this engine alone


class OpenVinoEngine:
    """An `Engine` on OpenVINO's CPU device. Calls from several threads are safe; they run one after the other."""

    name = "openvino"
    max_batch = 4096

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        """Compile a variant's graph.

        Args:
            precision: a variant, computed in float32 (int8: what is not in integers in bfloat16, where the CPU has it); or bfloat16, the
                float32 variant computed in it.

        Raises:
            Failure: OpenVINO is not installed or cannot load the graph, or the CPU has no bfloat16.
        """
        graph = bundle.path / bundle.variant("float32" if precision == BFLOAT16 else precision).graph
        self._core = _only(import_openvino().Core)
        has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == BFLOAT16 and not has_bfloat16:
            raise Failure("--precision bfloat16: OpenVINO finds no instructions for it in this CPU; take float32")
        # Left alone, OpenVINO computes float32 graphs in what the CPU is fastest at; what it cannot compute in, it silently replaces.
        low = has_bfloat16 and precision in (BFLOAT16, "int8")
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if low else "f32"}
        if threads:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = self._core.read_model(str(graph))
            self._model = _unrounded(model) if precision == "int8" else model
            compiled = self._core.compile_model(self._model, "CPU", self._settings | {"NUM_STREAMS": 1})
        except RuntimeError as error:
            raise Failure(f"{graph}: OpenVINO cannot load it ({_last_line(error)}); export the model again") from None
        self._threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._request, self._queue = compiled.create_infer_request(), None
        self.precision, self._shape, self._lock = precision, bundle.image_shape, threading.Lock()

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """See `Engine.predict`. Raises `BadInput` for inputs that are not of the graph's shapes and types."""
        inputs = check_inputs(np.ascontiguousarray(sample), timestep, class_label, guidance, self._shape)
        with self._lock:
            parts = shares(len(sample), self._threads)
            if len(parts) > 1 and self._threads > 1:
                return self._in_parts(inputs, parts)
            answer: np.ndarray = self._request.infer(inputs, share_inputs=True)["prediction"]  # the answer is a copy
        return answer

    def _in_parts(self, inputs: dict[str, np.ndarray], parts: list[slice]) -> np.ndarray:
        """A request for each part, computed by one thread."""
        if self._queue is None:
            settings = self._settings | {"NUM_STREAMS": self._threads}
            self._queue = import_openvino().AsyncInferQueue(self._core.compile_model(self._model, "CPU", settings), self._threads)
        answer = np.empty_like(inputs["sample"])

        def keep(request: Any, rows: slice) -> None:
            answer[rows] = request.get_tensor("prediction").data

        self._queue.set_callback(keep)
        for rows in parts:  # G - first of the rows that are left are guided
            self._queue.start_async({name: array[rows] for name, array in inputs.items()}, rows, share_inputs=True)
        self._queue.wait_all()
        return answer

    def close(self) -> None:
        """Drop the compiled graphs."""
        del self._request, self._queue


def _unrounded(model: Any) -> Any:
    """The model without the rounding of its convolutions' results: OpenVINO's integer convolutions give floats, ONNX Runtime's do not."""
    for op in model.get_ops():
        if op.get_type_name() == "FakeQuantize" and _is_convolution(op.input_value(0).get_node()):
            end = op  # QuantizeLinear and DequantizeLinear are FakeQuantize, Convert, Convert, Subtract, Multiply
            while end.get_type_name() != "Multiply" and len(readers := end.output(0).get_target_inputs()) == 1:
                end = next(iter(readers)).get_node()
            if end.get_type_name() == "Multiply":
                end.output(0).replace(op.input_value(0))
    return model


def _is_convolution(op: Any) -> bool:
    """Whether it is a convolution or adds its bias."""
    return op.get_type_name() == "Convolution" or (op.get_type_name() == "Add" and _is_convolution(op.input_value(0).get_node()))


@cache
def _only(core: type) -> Any:
    """The one `Core` of the process, kept to its end.

    Each puts the signal handlers of the thread that uses it first on a stack of its own, and takes that away when it goes. Of two that do
    not go in the reverse order of their coming, the first leaves the thread on a stack that is gone: the next Ctrl-C would be a crash.
    """
    return core()


def import_openvino() -> Any:
    """The module `openvino`. Raises `Failure` where it cannot be had.

    On import it reports its use to its makers, unasked, and leaves files in the home folder, unless its package for that is missing.
    So that package is hidden from it.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        found = "is not installed" if missing else f"cannot be loaded ({_last_line(error)})"
        raise Failure(f"OpenVINO {found}; pip install 'cfgdiff[openvino]'") from None
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
