"""OpenVINO on the CPU. It is imported when an engine is opened, not before.

Rows are divided among the threads. The graph is compiled for a few sizes of request, each at its first use: graphs of
fixed shape are a fifth faster, half as fast again at one row, and agree to the last bit.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from .bundle import Bundle
from .engine import OpenedEngine
from .errors import Failure
from .inputs import check_inputs
from .openvino_waves import split
from .threads import cores, rounds

OWN_PRECISIONS = {"bfloat16": "float32"}  # and the variants that are computed in them
Requests = tuple[Any, list["InferRequest"]]  # an AsyncInferQueue, and what each of its requests reads
NAMES = ("sample", "timestep", "class_label", "guidance", "condition", "condition_noise")


class OpenVinoEngine(OpenedEngine):
    """An `Engine` on OpenVINO's CPU device. Calls from several threads are safe; they run one after the other."""

    name = "openvino"
    max_batch = 4096

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        """Read a variant's graph.

        Args:
            precision: a variant, computed in float32 (int8: the rest in bfloat16, where the CPU has it); or bfloat16,
                in which the float32 variant is computed.

        Raises:
            Failure: OpenVINO is not installed or cannot load the graph, or the CPU has no bfloat16.
        """
        self._graph = bundle.path / bundle.variant(OWN_PRECISIONS.get(precision, precision)).graph
        self._core = _only(import_openvino().Core)
        has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and not has_bfloat16:
            raise Failure("precision: OpenVINO finds no instructions for bfloat16 in this CPU; take float32")
        # By default, OpenVINO computes in the CPU's fastest precision, and silently replaces those that it lacks.
        self._low, self._threads = has_bfloat16 and precision in ("bfloat16", "int8"), threads or cores()
        hint = "bf16" if self._low else "f32"
        self._settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self._threads}
        with self._explained():
            model = self._core.read_model(str(self._graph))
            self._model = _unrounded(model) if precision == "int8" else model
        self.precision, self._shape = precision, bundle.image_shape
        self._further = {"condition": self._shape, "condition_noise": ()} if bundle.stage else {}
        self._queues, self._lock = dict[tuple[int, int, int], Requests](), threading.Lock()

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`. Raises `BadInput` for wrong inputs, `Failure` where it fails or is closed."""
        inputs = check_inputs(
            np.ascontiguousarray(sample), timestep, class_label, guidance, self._shape, condition, bool(self._further)
        )
        (b, g), answer = (len(sample), len(guidance)), np.empty_like(inputs["sample"])
        with self._lock, self._explained():
            self.check_open()
            for first, stop in ((0, g), (g, b)):  # the rows of a request are all guided, or none
                for size, count in rounds(stop - first, self._threads):
                    streams = count if 2 * count <= self._threads else self._threads  # that share the threads
                    queue, requests = self._queue(streams, size, size if first < g else 0)
                    try:
                        for start in range(first, min(stop, first + size * count), size):
                            rows = slice(start, min(stop, start + size))
                            requests[queue.get_idle_request_id()].fill(inputs, rows)
                            queue.start_async(None, (answer, rows))
                    finally:  # a round at a time: the first thread of every shape is on the same core
                        queue.wait_all()
                    first += size * count
        return answer

    def _queue(self, streams: int, b: int, g: int) -> Requests:
        """`streams` requests for a graph of that shape, which divide the threads; and what each reads."""
        if (streams, b, g) not in self._queues:
            model, waves = self._model.clone(), None
            rows = {"sample": self._shape, "timestep": (), "class_label": (), **self._further}
            model.reshape({name: [b, *shape] for name, shape in rows.items()} | {"guidance": [g]})
            if self._low:
                waves, model = split(import_openvino(), model)
            compiled = self._core.compile_model(model, "CPU", self._settings | {"NUM_STREAMS": streams})
            front = waves and self._core.compile_model(waves, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            queue = import_openvino().AsyncInferQueue(compiled, streams)
            queue.set_callback(_keep)
            requests = [InferRequest(request, front and front.create_infer_request()) for request in queue]
            self._queues[streams, b, g] = queue, requests
        return self._queues[streams, b, g]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Failure:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:  # its own, and its binding's
            problem = f"OpenVINO cannot run it ({_last_line(error)})"
            raise Failure(f"{self._graph}: {problem}; export the model again") from None

    def close(self) -> None:
        """Drop the compiled graphs."""
        with self._lock:
            self.closed = True
            self._queues.clear()


class InferRequest:
    """One request of a queue, with the one that computes its waves (see `split`), if any."""

    def __init__(self, request: Any, waves: Any) -> None:
        self._waves, owners = waves, [request]
        if waves is not None:
            owners.append(waves)
            for output in waves.model_outputs:  # one buffer: written by the one, read by the other
                request.set_tensor(output.any_name, waves.get_tensor(output.any_name))
        self._arrays = [
            (name, owner.get_tensor(name).data)
            for owner in owners
            for name in NAMES
            if any(name in port.names and port.shape[0] for port in owner.model_inputs)
        ]

    def fill(self, inputs: dict[str, np.ndarray], rows: slice) -> None:
        """Give it these rows of the inputs, and the last of them again as padding."""
        n = rows.stop - rows.start
        for name, array in self._arrays:
            array[:n], array[n:] = inputs[name][rows], inputs[name][rows.stop - 1]
        if self._waves is not None:
            self._waves.infer()


def _keep(request: Any, place: tuple[np.ndarray, slice]) -> None:
    """Copy a request's answer to its rows."""
    answer, rows = place
    answer[rows] = request.get_tensor("prediction").data[: rows.stop - rows.start]


def _unrounded(model: Any) -> Any:
    """The model without the rounding of convolutions' results, as OpenVINO's integer convolutions return floats."""
    for op in model.get_ops():
        if op.get_type_name() == "FakeQuantize" and _is_convolution(op.input_value(0).get_node()):
            end = op  # QuantizeLinear and DequantizeLinear are FakeQuantize, Convert, Convert, Subtract, Multiply
            while end.get_type_name() != "Multiply" and len(readers := end.output(0).get_target_inputs()) == 1:
                end = next(iter(readers)).get_node()
            if end.get_type_name() == "Multiply":
                end.output(0).replace(op.input_value(0))
    return model


def _is_convolution(op: Any) -> bool:
    """Whether it is a convolution, or the addition of its bias."""
    return op.get_type_name() == "Convolution" or (
        op.get_type_name() == "Add" and _is_convolution(op.input_value(0).get_node())
    )


@cache
def _only(core: type) -> Any:
    """The one `Core` of the process, kept to its end.

    Each core moves the signal handlers of the thread that first uses it to a stack of its own, and frees that stack at
    its end. Unless two end in the reverse order of their creation, the thread is left on a freed stack: Ctrl-C would
    crash.
    """
    return core()


def import_openvino() -> Any:
    """The module `openvino`. Raises `Failure` where it is not available.

    On import it reports its use to its makers and leaves files in the home folder, unless its telemetry package is
    missing. So that package is hidden from it.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:  # OSError: a missing shared library
        missing = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        problem = "is not installed" if missing else f"cannot be loaded ({_last_line(error)})"
        raise Failure(f"OpenVINO {problem}; pip install 'cfgdiff[openvino]'") from None
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
