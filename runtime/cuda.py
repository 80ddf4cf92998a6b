"""The calls of CUDA's runtime that an engine needs, on GPU 0. `Cuda()` imports CUDA's binding for Python."""

import ctypes
import importlib
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .errors import Failure

BINDINGS = ("cuda.bindings.runtime", "cuda.cudart")  # cuda-bindings, and cuda-python before it was split


class Cuda:
    """GPU 0. Every method raises `Failure` naming the call that failed and CUDA's name for the error."""

    def __init__(self) -> None:
        self._runtime = _import_binding()
        try:
            error, *count = self._runtime.cudaGetDeviceCount()
            reason = error.name if error else "" if count[0] else "there are 0 devices"
        except RuntimeError as problem:  # of bindings that look for the driver themselves
            reason = str(problem)
        if reason:
            remedy = "install or update NVIDIA's driver, or take another engine"
            raise Failure(f"no GPU found (CUDA says {reason}); {remedy}")
        self._call("cudaSetDevice", 0)

    def _call(self, name: str, *args: Any) -> tuple[Any, ...]:
        error, *answer = getattr(self._runtime, name)(*args)
        if error:
            self._runtime.cudaGetLastError()  # clears it; otherwise TensorRT would take it for its own error
            advice = "see nvidia-smi for what else uses the GPU, or take another engine"
            raise Failure(f"CUDA: {name} failed with {error.name}; {advice}")
        return tuple(answer)

    def compute_capability(self) -> str:
        """As 8.6."""
        attribute = self._runtime.cudaDeviceAttr
        (major,) = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, 0)
        (minor,) = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, 0)
        return f"{major}.{minor}"

    @staticmethod
    def driver_version() -> str:
        """As nvidia-smi prints it, 570.133.20 (CUDA only knows which CUDA the driver supports), or "unknown"."""
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return answer[0] if answer else "unknown"

    def alloc_device(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        (address,) = self._call("cudaMalloc", size)
        return int(address)

    def free_device(self, address: int) -> None:
        """Free memory of `alloc_device`."""
        self._call("cudaFree", address)

    def alloc_pinned(self, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
        """An array in pinned host memory, which the GPU copies from and to by itself. At least one element."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        (address,) = self._call("cudaMallocHost", size)
        return np.frombuffer(memoryview((ctypes.c_byte * size).from_address(int(address))), kind).reshape(shape)

    def free_pinned(self, array: np.ndarray) -> None:
        """Free an array of `alloc_pinned`, which must not be touched again."""
        self._call("cudaFreeHost", array.ctypes.data)

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        (stream,) = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return int(stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream of `create_stream`."""
        self._call("cudaStreamDestroy", stream)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous `array` to the GPU, in the order of the stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        """Fill a contiguous `array` from the GPU, in the order of the stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def capture(self, work: Callable[[], None], stream: int) -> Any:
        """A graph of the calls that `work` enqueues on the stream, to be launched; none of them runs yet."""
        self._call(
            "cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            with suppress(Failure):  # the capture is invalid; ending it is enough
                self._call("cudaGraphDestroy", *self._call("cudaStreamEndCapture", stream))
            raise
        (graph,) = self._call("cudaStreamEndCapture", stream)
        try:
            (launchable,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return launchable

    def launch(self, graph: Any, stream: int) -> None:
        """Run a captured graph, in the order of the stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph of `capture`."""
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self, stream: int) -> None:
        """Wait until all work on the stream is done."""
        self._call("cudaStreamSynchronize", stream)


def _import_binding() -> Any:
    for name in BINDINGS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise Failure("CUDA's binding for Python is not installed; pip install cuda-bindings")
