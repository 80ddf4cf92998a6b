"""A model repository in a real Triton server, where `tritonserver` is on PATH, as in NVIDIA's container.

Where the server has no ONNX Runtime backend, the graph runs on ONNX Runtime in its Python backend instead.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import rows

from cfgdiff.export.triton import write_repository
from cfgdiff.runtime import generate, load_bundle, open_engine

triton = pytest.importorskip("tritonclient.grpc", reason="needs Triton's client: pip install 'tritonclient[grpc]'")
HOW = "needs tritonserver on PATH, as in NVIDIA's container; TRITON_BACKENDS is the folder of its backends"
pytestmark = pytest.mark.skipif(shutil.which("tritonserver") is None, reason=HOW)
BACKENDS = Path(os.environ.get("TRITON_BACKENDS", "/opt/tritonserver/backends"))
MODELS = ("cifar10-turbo", "cifar10-small")
GRAPH = """
from pathlib import Path
import numpy as np, onnxruntime, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))

    def execute(self, requests):
        inputs = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        joined = {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}
        prediction = self.session.run(["prediction"], joined)[0]
        parts = np.split(prediction, np.cumsum([len(each["sample"]) for each in inputs])[:-1])
        return [utils.InferenceResponse([utils.Tensor("prediction", part)]) for part in parts]
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports (http, grpc, metrics) of a server of the packaged models."""
    folder, log = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("log") / "server.log"
    for name in MODELS:
        _, network = write_repository(load_bundle(name), folder / name)
        if not (BACKENDS / "onnxruntime").is_dir():
            config = folder / name / network / "config.pbtxt"
            config.write_text(config.read_text().replace('"onnxruntime"', '"python"'))
            (folder / name / network / "1" / "model.py").write_text(GRAPH)
    with ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        numbers = [each.getsockname()[1] for each in sockets]
    found = dict(zip(("http", "grpc", "metrics"), numbers, strict=True))
    command = ["tritonserver", *(f"--model-repository={folder / name}" for name in MODELS)]
    command += [f"--backend-directory={BACKENDS}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += [f"--{name}-port={number}" for name, number in found.items()]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            _wait(server, f"http://127.0.0.1:{found['http']}/v2/health/ready", log)
            yield found
        finally:
            server.terminate()


def _wait(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(address):
            return
        assert server.poll() is None, log.read_text()[-4000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-4000:])


def inputs_of(n: int, **more: object) -> list[Any]:
    """The inputs of `rows(n, ...)`."""
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, array in rows(n, **more).items():
        inputs.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def ask(ports: dict[str, int], model: str, n: int, **more: object) -> np.ndarray:
    """The pictures of `rows(n, ...)`."""
    with triton.InferenceServerClient(f"127.0.0.1:{ports['grpc']}") as client:
        return client.infer(model, inputs_of(n, **more)).as_numpy("picture").astype(int)


def counts(ports: dict[str, int], model: str) -> dict[str, float]:
    """The figures of a model's network."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics") as page:
        lines = [line.split() for line in page.read().decode().splitlines() if f'"{model}_network"' in line]
    return {name.split("{")[0]: float(value) for name, value in lines}


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "guidance": 2.5}, {"guidance": [1.0, 4.0, 1.0, 4.0, 2.0]}])
@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_those_of_cfgdiff_run(ports: dict[str, int], name: str, settings: dict[str, Any]) -> None:
    bundle = load_bundle(name)
    ((_, expected),) = generate(open_engine(bundle, "cpu", "float32"), bundle, list(range(5)), seed=5, **settings)
    assert np.abs(ask(ports, name, 5, **settings) - expected).max() <= 1


def test_a_wrong_request_is_an_error_of_one_line(ports: dict[str, int]) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=r"class_label: expected 0 \.\. 9 .*, found 10") as error:
        ask(ports, "cifar10-turbo", 1, class_label=10)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_rows_of_many_requests_share_calls(ports: dict[str, int]) -> None:
    before = counts(ports, "cifar10-turbo")
    with ThreadPoolExecutor(16) as pool:
        pictures = list(pool.map(lambda i: ask(ports, "cifar10-turbo", 1, seed=i % 4, steps=1 + i % 4), range(64)))
    for first, again in zip(pictures[:4], pictures[-4:], strict=True):
        assert np.abs(first - again).max() <= 1
    rose = {
        name: counts(ports, "cifar10-turbo")[name] - before.get(name, 0)
        for name in ("nv_inference_count", "nv_inference_exec_count")
    }
    assert rose["nv_inference_count"] == 16 * (1 + 2 + 3 + 4) > 1.5 * rose["nv_inference_exec_count"]


def test_a_cancelled_request_makes_no_more_calls(ports: dict[str, int]) -> None:
    before, calls = counts(ports, "cifar10-small").get("nv_inference_exec_count", 0), list[float]()
    with triton.InferenceServerClient(f"127.0.0.1:{ports['grpc']}") as client:
        request = client.async_infer("cifar10-small", inputs_of(1, steps=1000), lambda result, error: None)
        while counts(ports, "cifar10-small").get("nv_inference_exec_count", 0) < before + 3:
            time.sleep(0.02)
        request.cancel()
        while len(calls) < 2 or calls[-1] != calls[-2]:
            time.sleep(0.5)
            calls.append(counts(ports, "cifar10-small")["nv_inference_exec_count"])
    assert before + 3 <= calls[-1] < before + 900
