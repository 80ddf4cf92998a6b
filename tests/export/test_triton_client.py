"""NVIDIA's client, as docs/triton.md shows it, against the stand-in of Triton behind Triton's own gRPC protocol."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import Refused, Server, TritonError
from PIL import Image

from cfgdiff.export.triton import write_repository
from cfgdiff.runtime import generate, load_bundle, open_engine

grpc = pytest.importorskip("grpc", reason="needs Triton's client: pip install 'tritonclient[grpc]'")
PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
TYPES = {"INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32, "INT32": np.int32}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a server of cifar10-turbo answers."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    write_repository(load_bundle("cifar10-turbo"), tmp_path / "models")
    server = Server(tmp_path / "models")

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
            tensors = zip(request.inputs, request.raw_input_contents, strict=True)
            inputs = {
                each.name: np.frombuffer(data, TYPES[each.datatype]).reshape(tuple(each.shape))
                for each, data in tensors
            }
            try:
                (answer,) = server.infer(request.model_name, inputs)
            except Refused as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if isinstance(answer, TritonError):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, answer.message())
            picture = answer["picture"]
            response = service_pb2.ModelInferResponse(
                model_name=request.model_name, raw_output_contents=[picture.tobytes()]
            )
            response.outputs.add(name="picture", datatype="UINT8", shape=picture.shape)
            return response

    listening = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), listening)
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    yield f"127.0.0.1:{port}"
    listening.stop(None).wait()


def test_the_example_of_the_page_runs(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.+?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "localhost:8001" in example
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("localhost:8001", address), names)
    pictures = names["answer"].as_numpy("picture")
    bundle = load_bundle("cifar10-turbo")
    ((_, expected),) = generate(open_engine(bundle, "cpu", "float32", threads=1), bundle, ["frog"] * 4, seed=7)
    assert np.abs(pictures.astype(int) - expected).max() <= 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "frog.png")), pictures[0])


def test_an_error_reaches_the_client(address: str) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    inputs = [triton.InferInput(name, (1, 1), kind) for name, kind in (("class_label", "INT64"), ("seed", "UINT64"))]
    inputs[0].set_data_from_numpy(np.array([[10]]))
    inputs[1].set_data_from_numpy(np.array([[7]], np.uint64))
    with pytest.raises(InferenceServerException, match=r"class_label: expected 0 \.\. 9 .*, found 10"):
        triton.InferenceServerClient(address).infer("cifar10-turbo", inputs)
