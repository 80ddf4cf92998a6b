"""The calls of CUDA, against a fake of its binding; the tests of the engine use the rest of them."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime.cuda import Cuda
from cfgdiff.runtime.errors import Failure


def test_copies_there_and_back_in_the_order_of_the_stream(gpu: Any) -> None:
    cuda = Cuda()
    stream, array, address = cuda.create_stream(), cuda.alloc_pinned((2, 3), np.float32), cuda.alloc_device(24)
    assert (array.shape, array.dtype) == ((2, 3), np.float32)
    array[:] = expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    cuda.copy_in(address, array, stream)
    cuda.synchronize(stream)
    array[:] = 0
    cuda.copy_out(array, address, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(array, expected)
    cuda.free_pinned(array)
    cuda.free_device(address)
    cuda.destroy_stream(stream)
    assert not gpu.memory and not gpu.streams


def test_a_capture_runs_when_launched_and_no_sooner(gpu: Any) -> None:
    cuda, ran = Cuda(), []
    stream = cuda.create_stream()
    graph = cuda.capture(lambda: gpu.put(lambda: ran.append(1)), stream)
    cuda.synchronize(stream)
    assert not ran
    for _ in range(2):
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
    assert ran == [1, 1]
    cuda.destroy_graph(graph)
    assert not gpu.graphs and not gpu.recorded


def test_work_that_fails_leaves_no_capture_behind(gpu: Any) -> None:
    def work() -> None:
        raise Failure("no")

    with pytest.raises(Failure, match=r"^no$"):
        Cuda().capture(work, 7)
    gpu.failing["cudaGraphInstantiate"] = gpu.cudaError_t.cudaErrorUnknown
    with pytest.raises(Failure, match="cudaGraphInstantiate failed with cudaErrorUnknown"):
        Cuda().capture(lambda: None, 7)
    assert gpu.captured is None and not gpu.recorded


def test_a_failing_call_is_named_and_forgotten(gpu: Any) -> None:
    cuda = Cuda()
    gpu.failing["cudaMalloc"] = gpu.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(Failure, match="cudaMalloc failed with cudaErrorMemoryAllocation; see nvidia-smi"):
        cuda.alloc_device(1)
    assert gpu.calls[-1] == "cudaGetLastError"


def test_missing_bindings_drivers_and_devices_are_told_apart(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.failing["cudaGetDeviceCount"] = gpu.cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(Failure, match=r"no GPU found \(CUDA says cudaErrorInsufficientDriver\)"):
        Cuda()
    gpu.failing.clear()
    monkeypatch.setattr(gpu, "getdevicecount", lambda: 0)
    with pytest.raises(Failure, match=r"no GPU found \(CUDA says there are 0 devices\)"):
        Cuda()

    def no_driver() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(gpu, "getdevicecount", no_driver)
    with pytest.raises(Failure, match=r"no GPU found \(CUDA says Failed to dlopen libcuda.so.1\)"):
        Cuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(Failure, match="pip install cuda-bindings"):
        Cuda()


def test_the_older_binding_is_taken_too(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", gpu)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    assert Cuda().compute_capability() == "8.6"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("570.133.20\n570.133.20\n", "570.133.20"), ("", "unknown"), (FileNotFoundError(), "unknown")],
)
def test_the_driver_is_what_nvidia_smi_says(
    answer: str | Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        assert command[:2] == ["nvidia-smi", "--query-gpu=driver_version"]
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, answer)

    monkeypatch.setattr(subprocess, "run", run)
    assert Cuda.driver_version() == expected
