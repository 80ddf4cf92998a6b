"""A GPU of NumPy: what `cuda.bindings.runtime` and `tensorrt_rtx` are to the runtime, on memory of the host."""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.cuda import Cuda
from cfgdiff.runtime.sidecar import BuiltEngine, EngineKey, graph_digest, write_sidecar

Error = IntEnum(
    "Error",
    {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorInsufficientDriver": 35, "cudaErrorUnknown": 999},
)


CONSTANTS = {
    "cudaStreamNonBlocking": 1,
    "cudaDeviceAttr": SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76),
    "cudaMemcpyKind": SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    "cudaStreamCaptureMode": SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
}


class FakeCuda:
    """What is put onto a stream runs when it is synchronized, so that nothing is right by chance."""

    def __init__(self) -> None:
        self.cudaError_t = Error
        self.memory: dict[int, np.ndarray] = {}
        self.failing: dict[str, Error] = {}
        self.calls: list[str] = []
        self.streams: set[int] = set()
        self.recorded = 0  # captures that were ended and not destroyed
        self.graphs: set[int] = set()
        self.pending: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if not name.startswith("cuda"):
            raise AttributeError(name)
        work = getattr(self, name.removeprefix("cuda").lower())

        def call(*args: Any) -> tuple:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name], None
            answer = work(*args)
            return (Error.cudaSuccess,) if answer is None else (Error.cudaSuccess, answer)

        return call

    def put(self, work: Callable[[], None]) -> None:
        (self.pending if self.captured is None else self.captured).append(work)

    def array(self, address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """What lies at an address that was allocated and is not free again."""
        return self.memory[address][: int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)

    def getdevicecount(self) -> int:
        return 1

    def setdevice(self, device: int) -> None:
        assert device == 0

    def getlasterror(self) -> None:
        return None

    def devicegetattribute(self, attribute: int, device: int) -> int:
        return {75: 8, 76: 6}[attribute]

    def malloc(self, size: int) -> int:
        block = np.zeros(size, np.uint8)
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    mallochost = malloc

    def free(self, address: int) -> None:
        del self.memory[address]

    freehost = free

    def streamcreatewithflags(self, flags: int) -> int:
        self.streams.add(7)
        return 7

    def streamdestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def memcpyasync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        assert stream in self.streams and size > 0 and {target, source} <= self.memory.keys()
        self.put(lambda: ctypes.memmove(target, source, size))

    def streambegincapture(self, stream: int, mode: int) -> None:
        self.captured = []

    def streamendcapture(self, stream: int) -> Any:
        captured, self.captured = self.captured, None
        self.recorded += 1
        return SimpleNamespace(work=captured)

    def graphinstantiate(self, graph: Any, flags: int) -> Any:
        self.graphs.add(id(graph))
        return graph

    def graphdestroy(self, graph: Any) -> None:
        self.recorded -= 1

    def graphexecdestroy(self, graph: Any) -> None:
        self.graphs.remove(id(graph))

    def graphlaunch(self, graph: Any, stream: int) -> None:
        assert id(graph) in self.graphs
        self.pending += graph.work

    def streamsynchronize(self, stream: int) -> None:
        pending, self.pending = self.pending, []
        for work in pending:
            work()


class FakeContext:
    """Answers with sample + t + 10 label, and + 100 w in guided rows."""

    def __init__(self, gpu: FakeCuda, module: Any) -> None:
        self.gpu, self.module, self.shapes, self.addresses = gpu, module, {}, {}

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.gpu.memory[address]) == size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape not in self.module.refused

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.module.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.gpu.put(self.work)
        return self.gpu.captured is None or self.module.runs_in_capture

    def work(self) -> None:
        kinds = {"sample": "f4", "timestep": "f4", "class_label": "i8", "guidance": "f4"}
        x, t, label, w = (self.gpu.array(self.addresses[name], self.shapes[name], kind) for name, kind in kinds.items())
        answer = x + (t + 10 * label)[:, None, None, None]
        answer[: len(w)] += 100 * w[:, None, None, None]
        self.gpu.array(self.addresses["prediction"], x.shape, "f4")[:] = answer


def fake_tensorrt(gpu: FakeCuda, name: str) -> Any:
    """`tensorrt` or `tensorrt_rtx`. Its engines are the bytes `good`; all others it complains about and does not
    load."""
    module: Any = ModuleType(name)
    module.__version__, module.refused, module.capturable, module.runs_in_capture, module.setups = (
        "1.7.1",
        [],
        True,
        True,
        [],
    )
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="shared")
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        INTERNAL_ERROR, ERROR, INFO = 0, 1, 3

    class Config:
        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.allocation = strategy

        def create_runtime_cache(self) -> str:
            return "cache"

        def set_runtime_cache(self, cache: str) -> bool:
            self.cache = cache
            return True

    class Engine:
        device_memory_size_v2 = 0
        create_runtime_config = Config

        def create_execution_context(self, setup: Any) -> FakeContext:
            module.setups.append(setup)
            return FakeContext(gpu, module)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            if data == b"good":
                return Engine()
            self.logger.log(ILogger.ERROR, "magic tag\ndoes not match")
            self.logger.log(ILogger.INFO, "that was it")
            return None

    module.ILogger, module.Runtime = ILogger, Runtime
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU with compute capability 8.6 and driver 570.1; both TensorRT modules and CUDA's binding are installed."""
    fake = FakeCuda()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)  # type: ignore[arg-type]
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, fake_tensorrt(fake, name))
    monkeypatch.setattr(Cuda, "driver_version", staticmethod(lambda: "570.1"))
    return fake


@pytest.fixture
def write_engine(copied: Path) -> Callable[..., BuiltEngine]:
    """A function that puts an engine beside the copied bundle, for batches of 1 to 8; its arguments change parts of the
    key."""
    key = EngineKey(
        graph_digest(load_bundle(copied).variant("float32")),
        "tensorrt_rtx",
        "1.7.1",
        ("8.6", "8.9"),
        "any",
        "float32",
        (1, 4, 8),
    )

    def write(data: bytes = b"good", passed: bool | None = True, **changes: Any) -> BuiltEngine:
        changed, digest = replace(key, **changes), hashlib.sha256(data).hexdigest()
        failures = () if passed else ("batch 8 is off",)
        certificate = None if passed is None else Certificate(passed, digest, failures=failures)
        engine = BuiltEngine(copied / changed.file_name, changed, digest, certificate)
        engine.path.write_bytes(data)
        write_sidecar(engine)
        return engine

    return write
