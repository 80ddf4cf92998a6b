"""The Python model of a Triton repository: the sampling loop, whose network is another model on the same server.

`export/triton.py` copies this file as 1/model.py, with bundle.json beside it. Triton hands over the requests that wait
together; they take their steps together, too, each of which is one call of the network for the rows of all of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cfgdiff.runtime import BadInput, Failure, Plan, Request, resolve
from cfgdiff.runtime.bundle import read_description
from cfgdiff.runtime.engine import OpenedEngine
from cfgdiff.runtime.generate import drawing
from cfgdiff.runtime.samplers import Steps
from cfgdiff.runtime.server.batches import Rows, divided, joined


class Cancelled(Failure):
    """The client does not wait for the pictures any more."""


class Network(OpenedEngine):
    """The network on this server as an engine."""

    def __init__(self, name: str, precision: str, max_batch: int) -> None:
        self.name, self.precision, self.max_batch = name, precision, max_batch

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`. Raises `Failure` where the network's model does not answer."""
        w = np.ones(len(sample), np.float32)  # plain conditional, as rows without guidance are
        w[: len(guidance)] = guidance
        rows = {"timestep": timestep, "class_label": class_label, "guidance": w}
        tensors = [pb_utils.Tensor(name, array[:, None]) for name, array in rows.items()]  # (B, 1), as Triton has them
        request = pb_utils.InferenceRequest(
            model_name=self.name,
            inputs=[pb_utils.Tensor("sample", sample), *tensors],
            requested_output_names=["prediction"],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),  # NumPy reads no other
        )
        response = request.exec()
        if response.has_error():
            raise Failure(f"{self.name}: {response.error().message()}")
        prediction: np.ndarray = pb_utils.get_output_tensor_by_name(response, "prediction").as_numpy()
        return prediction

    def close(self) -> None:
        """Nothing: the server holds the network."""


class Drawing:
    """The pictures of one request: the rows that they need next, or the response at their end."""

    def __init__(self, request: Any, steps: Steps) -> None:
        self.rows: Rows | None = None
        self.response: Any = None
        self._request, self._steps = request, steps

    def advance(self, answer: np.ndarray | None) -> None:
        """To the next call of the network, with its answer to the one before; with None to the first."""
        try:
            if self._request.is_cancelled():
                raise Cancelled("cancelled: the client does not wait any more")
            self.rows = Rows(*self._steps.send(answer))  # type: ignore[arg-type]  # a generator begins with None
        except StopIteration as end:
            self.rows, self.response = None, pb_utils.InferenceResponse([pb_utils.Tensor("picture", end.value)])
        except Failure as error:
            self.fail(error)

    def fail(self, error: Failure) -> None:
        """End with an error, in one line."""
        code = pb_utils.TritonError.INTERNAL
        if isinstance(error, BadInput):
            code = pb_utils.TritonError.INVALID_ARG
        elif isinstance(error, Cancelled):
            code = pb_utils.TritonError.CANCELLED
        told = pb_utils.TritonError(" ".join(str(error).split()), code)
        self.rows, self.response = None, pb_utils.InferenceResponse(error=told)


class TritonPythonModel:
    """What Triton's Python backend calls: `initialize` once, then `execute`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings of config.pbtxt, and the model's description beside this file.

        Raises:
            Failure: bundle.json is missing or damaged.
        """
        config = json.loads(args["model_config"])
        settings = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.model = read_description(Path(__file__).parent)
        self.network = Network(settings["network"], settings["precision"], config["max_batch_size"])
        self.most_steps = int(settings["most_steps"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """The responses to requests, in their order: pictures, or an error that is about this request alone."""
        drawings = [Drawing(request, self._draw(request)) for request in requests]
        with np.errstate(over="ignore", invalid="ignore"):  # `drawing` names what is not finite
            for each in drawings:
                each.advance(None)
            while waiting := [(each, each.rows) for each in drawings if each.rows is not None]:
                self._step(waiting)
        return [each.response for each in drawings]

    def _step(self, waiting: list[tuple[Drawing, Rows]]) -> None:
        """One call of the network for the next rows of all."""
        rows = [rows for _, rows in waiting]
        try:
            answers = divided(self.network.predict(*joined(rows)), rows)
        except Failure as error:
            for each, _ in waiting:
                each.fail(error)
            return
        for (each, _), answer in zip(waiting, answers, strict=True):
            each.advance(answer)

    def _draw(self, request: Any) -> Steps:
        return (yield from drawing(self.network, self._plan(request)))

    def _plan(self, request: Any) -> Plan:
        """The plan of a request. Raises `BadInput`, naming the input."""
        labels, seeds, indices = (_column(request, name) for name in ("class_label", "seed", "index"))
        steps, guidance = _column(request, "steps"), _column(request, "guidance")
        assert labels is not None and seeds is not None  # Triton refuses a request without them
        names = self.model.class_names
        if not len(labels):
            raise BadInput("class_label: expected a row for each picture, found none")
        if len(wrong := labels[(labels < 0) | (labels >= len(names))]):
            raise BadInput(f"class_label: expected 0 .. {len(names) - 1} ({', '.join(names)}), found {wrong[0]}")
        return resolve(
            self.model,
            Request(
                labels,
                None if steps is None else self._evaluations(steps),
                # The shortest number that is this float32, as the model's own settings are written: not 1.60000002.
                None if guidance is None else [float(str(w)) for w in guidance],
                seeds,
                indices=np.zeros(len(labels), np.uint64) if indices is None else indices,
            ),
        )

    def _evaluations(self, steps: np.ndarray) -> int:
        """Of all pictures of a request."""
        if (other := steps[steps != steps[0]]).size:
            expected = "expected the same number for all pictures of a request"
            raise BadInput(f"steps: {expected}, found {steps[0]} and {other[0]}; send a request for each")
        if steps[0] > self.most_steps:
            raise BadInput(f"steps: expected at most {self.most_steps}, as config.pbtxt allows, found {steps[0]}")
        return int(steps[0])


def _column(request: Any, name: str) -> np.ndarray | None:
    """An input with a number for each picture, (B,); None where the request has none."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()[:, 0]
