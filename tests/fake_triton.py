"""A stand-in for Triton Inference Server, which is not installed anywhere here: what a model repository meets in it.

It follows the public documentation of the server, its core and its Python backend, and is as strict as they are: the
rules of config.pbtxt, the checks of requests and responses, and the life of a model (calls of other models only inside
`execute`, tensors of another model in GPU memory unless they are asked for elsewhere). Graphs run on ONNX Runtime.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf: pip install protobuf")
PB2 = "tritonclient.grpc.model_config_pb2"
model_config_pb2 = pytest.importorskip(PB2, reason="needs Triton's protobuf: pip install 'tritonclient[grpc]'")

TYPES = {
    "TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_UINT64": np.uint64, "TYPE_INT32": np.int32,
    "TYPE_UINT8": np.uint8,
}  # fmt: skip


class Refused(Exception):
    """The server refuses a request, or to load a model."""


class Tensor:
    def __init__(self, name: str, numpy_array: np.ndarray, on_gpu: bool = False) -> None:
        assert isinstance(name, str) and name and type(numpy_array) is np.ndarray
        assert numpy_array.dtype.type in TYPES.values(), numpy_array.dtype
        self._name, self._array, self._on_gpu = name, np.ascontiguousarray(numpy_array), on_gpu

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        if self._on_gpu:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str) and code in range(8)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        assert all(isinstance(tensor, Tensor) for tensor in output_tensors)
        assert error is None or isinstance(error, TritonError)
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class PreferredMemory:
    def __init__(self, preferred_memory_type: str, preferred_device_id: int = 0) -> None:
        assert preferred_memory_type in ("cpu", "gpu") and isinstance(preferred_device_id, int)
        self.kind = preferred_memory_type


class Incoming:
    """A request as `execute` gets it."""

    def __init__(self, inputs: dict[str, np.ndarray], cancelled_after: int | None = None) -> None:
        self._inputs, self._left = [Tensor(name, array) for name, array in inputs.items()], cancelled_after

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        if self._left is None:
            return False
        self._left -= 1
        return self._left < 0


class Server:
    """A server that has loaded the models of a repository.

    Attributes:
        configs: by model.
        calls: (model, the names of its inputs with their shapes) of each execution, in order.
        fail: what the networks answer, in place of a prediction.
    """

    def __init__(self, repository: Path) -> None:
        self.calls: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.fail = ""
        self._executing, self._sessions, self._models = False, dict[str, Any](), dict[str, Any]()
        folders = [path for path in sorted(repository.iterdir()) if path.is_dir()]
        self.configs = {folder.name: read_config(folder) for folder in folders}
        for folder in folders:
            if self.configs[folder.name].backend == "python":
                self._models[folder.name] = self._load_python(folder)
            else:
                self._sessions[folder.name] = self._load_graph(folder)

    def infer(
        self, model: str, *requests: dict[str, np.ndarray] | Incoming
    ) -> list[dict[str, np.ndarray] | TritonError]:
        """Requests that wait together for a model, answered by one execution: the outputs of each, or its error."""
        ready = [request if isinstance(request, Incoming) else Incoming(request) for request in requests]
        for request in ready:
            self._check(model, {tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        assert sum(len(request.inputs()[0].as_numpy()) for request in ready) <= self.configs[model].max_batch_size
        if model in self._sessions:
            return [{"prediction": self._run(model, _arrays(request))} for request in ready]
        self._executing = True
        try:
            responses = self._models[model].execute(ready)
        finally:
            self._executing = False
        assert type(responses) is list and len(responses) == len(ready)
        return [self._checked(model, *pair) for pair in zip(ready, responses, strict=True)]

    def _load_graph(self, folder: Path) -> Any:
        session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        config = self.configs[folder.name]
        for values, ios, exact in (
            (session.get_inputs(), config.input, False),
            (session.get_outputs(), config.output, True),
        ):
            shapes = {value.name: [n if isinstance(n, int) else -1 for n in value.shape] for value in values}
            kinds = {
                value.name: {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}[value.type]
                for value in values
            }
            assert shapes.keys() == {io.name for io in ios}
            for io in ios:
                full = [-1, *(io.reshape.shape if io.HasField("reshape") else io.dims)]
                fits = full == shapes[io.name] or (
                    not exact and len(full) == len(shapes[io.name])
                    and all(has in (-1, says) for has, says in zip(shapes[io.name], full, strict=True))
                )  # fmt: skip
                assert fits and type_name(io) == kinds[io.name], io
        return session

    def _load_python(self, folder: Path) -> Any:
        from google.protobuf.json_format import MessageToDict

        config = MessageToDict(self.configs[folder.name], preserving_proto_field_name=True)
        utils: Any = ModuleType("triton_python_backend_utils")
        utils.get_input_tensor_by_name = lambda request, name: _named(request.inputs(), name)
        utils.get_output_tensor_by_name = lambda response, name: _named(response.output_tensors(), name)
        spec = importlib.util.spec_from_file_location("1.model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "triton_python_backend_utils", utils)
            spec.loader.exec_module(module)
        # The backend adds what it implements itself only after the import.
        utils.Tensor, utils.TritonError, utils.InferenceResponse = Tensor, TritonError, InferenceResponse
        utils.TritonModelException, utils.PreferredMemory = TritonModelException, PreferredMemory
        utils.TRITONSERVER_MEMORY_CPU, utils.TRITONSERVER_MEMORY_GPU = "cpu", "gpu"
        utils.InferenceRequest = self._request_class()
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config), "model_name": folder.name, "model_version": "1",
                "model_repository": str(folder), "model_instance_kind": "CPU", "model_instance_device_id": "0",
            }
        )  # fmt: skip
        return model

    def _request_class(self) -> type:
        server = self

        class InferenceRequest:
            """A call of another model on this server."""

            def __init__(
                self, *, model_name: str, inputs: list[Tensor], requested_output_names: list[str],
                preferred_memory: PreferredMemory | None = None,
            ) -> None:  # fmt: skip
                assert all(isinstance(tensor, Tensor) for tensor in inputs)
                self._model, self._inputs, self._outputs = model_name, inputs, requested_output_names
                self._on_gpu = preferred_memory is None or preferred_memory.kind != "cpu"

            def exec(self) -> InferenceResponse:
                if not server._executing:
                    raise TritonModelException("BLS is only supported during the 'execute' function.")
                try:
                    arrays = {tensor.name(): tensor.as_numpy() for tensor in self._inputs}
                    server._check(self._model, arrays)
                    if unknown := set(self._outputs) - {output.name for output in server.configs[self._model].output}:
                        raise Refused(f"unexpected inference output {unknown}")
                    prediction = server._run(self._model, arrays)
                except Refused as error:
                    return InferenceResponse(error=TritonError(str(error)))
                return InferenceResponse([Tensor("prediction", prediction, self._on_gpu)])

        return InferenceRequest

    def _check(self, model: str, inputs: dict[str, np.ndarray]) -> None:
        """Raises `Refused` as the server's core refuses a request."""
        if model not in self.configs:
            raise Refused(f"Request for unknown model: '{model}' is not found")
        config, batch = self.configs[model], {len(array) for array in inputs.values()}
        known = {io.name: io for io in config.input}
        if unknown := inputs.keys() - known.keys():
            raise Refused(f"unexpected inference input {unknown} for model '{model}'")
        if missing := {name for name, io in known.items() if not io.optional} - inputs.keys():
            raise Refused(f"expected number of inputs, missing {missing} for model '{model}'")
        if len(batch) > 1:
            raise Refused(f"batch size does not match other inputs for '{model}'")
        if max(batch) > config.max_batch_size:
            raise Refused(f"inference request batch-size must be <= {config.max_batch_size} for '{model}'")
        for name, array in inputs.items():
            if array.dtype != TYPES[type_name(known[name])]:
                raise Refused(f"inference input '{name}' data-type is '{array.dtype}', but '{model}' expects another")
            if list(array.shape[1:]) != list(known[name].dims):
                raise Refused(f"unexpected shape for input '{name}' for model '{model}', got {array.shape}")

    def _run(self, model: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        self.calls.append((model, {name: array.shape for name, array in inputs.items()}))
        if self.fail:
            raise Refused(self.fail)
        shaped = {}
        for io in self.configs[model].input:
            dims = io.reshape.shape if io.HasField("reshape") else io.dims
            shaped[io.name] = inputs[io.name].reshape(len(inputs[io.name]), *dims)
        return self._sessions[model].run(["prediction"], shaped)[0]

    def _checked(self, model: str, request: Incoming, response: Any) -> dict[str, np.ndarray] | TritonError:
        assert isinstance(response, InferenceResponse)
        if error := response.error():
            assert error.message() and "\n" not in error.message()
            return error
        outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        known = {io.name: io for io in self.configs[model].output}
        assert outputs.keys() == known.keys()
        for name, array in outputs.items():
            assert array.dtype == TYPES[type_name(known[name])]
            assert array.shape == (len(request.inputs()[0].as_numpy()), *known[name].dims)
        return outputs


def read_config(folder: Path) -> Any:
    """A model's config.pbtxt by Triton's own protobuf, with the rules of the server's core."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert config.name == folder.name and config.backend and not config.platform and config.max_batch_size > 0
    for io in (*config.input, *config.output):
        assert io.name and len(io.dims) and all(n > 0 for n in io.dims) and type_name(io) != "TYPE_INVALID"
        if io.HasField("reshape"):
            dims, shape = np.prod(io.dims), np.prod(io.reshape.shape) if len(io.reshape.shape) else 1
            assert dims == shape, io
    assert not config.HasField("sequence_batching") and not config.model_transaction_policy.decoupled
    return config


def type_name(io: Any) -> str:
    """The name of the type of an input or output."""
    return str(model_config_pb2.DataType.Name(io.data_type))


def rows(n: int, **more: object) -> dict[str, np.ndarray]:
    """A request for n pictures of class 0 .. 9, seed 5, numbers 0 .. n - 1."""
    kinds = {"guidance": np.float32, "steps": np.int32, "class_label": np.int64}
    values = {"class_label": np.arange(n) % 10, "seed": 5, "index": np.arange(n)} | more
    return {
        name: np.broadcast_to(np.array(value, kinds.get(name, np.uint64)), n).reshape(n, 1).copy()
        for name, value in values.items()
    }


def _arrays(request: Incoming) -> dict[str, np.ndarray]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _named(tensors: list[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)
