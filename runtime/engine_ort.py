"""ONNX Runtime, on the CPU and, through CUDA, on GPU 0. It is imported when an engine is opened, not before."""

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .engine import OpenedEngine
from .errors import Failure
from .inputs import check_inputs
from .sidecar import graph_digest
from .threads import cores, shares

log = logging.getLogger("cfgdiff")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Both packages install the module onnxruntime and overwrite each other; cfgdiff[cuda] would bring back the first.
TO_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
MOST_SHAPES = 16  # a run has about four: full and last batches, inside and outside the guidance interval


class OrtEngine(OpenedEngine):
    """An `Engine` on ONNX Runtime's CPU provider. Calls from several threads are safe."""

    name = "cpu"
    max_batch = 4096

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        self._graph, self._threads = bundle.path / bundle.variant(precision).graph, threads or cores()
        self._sessions = {self._threads: open_session(self._graph, self._threads)}  # by the threads of a run
        self._pool, self._opening = ThreadPoolExecutor(self._threads, "cfgdiff"), threading.Lock()
        self.precision, self._shape, self._takes_condition = precision, bundle.image_shape, bundle.stage > 0

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`. Raises `BadInput` for wrong inputs, `Failure` where it fails or is closed."""
        self.check_open()
        inputs = check_inputs(sample, timestep, class_label, guidance, self._shape, condition, self._takes_condition)
        parts = shares(0, len(sample), self._threads)
        session = self._session(max(1, self._threads // len(parts)))

        def run(rows: slice) -> np.ndarray:  # G - first of the rows that are left are guided
            try:
                return session.run(["prediction"], {name: array[rows] for name, array in inputs.items()})[0]
            except Exception as error:  # onnxruntime has no common base class for its errors
                what = f"{self._graph}: ONNX Runtime fails for a batch of {len(sample)} ({_first_line(error)})"
                raise Failure(f"{what}; a smaller batch needs less memory, or export the model again") from None

        return run(parts[0]) if len(parts) == 1 else np.concatenate(list(self._pool.map(run, parts)))

    def _session(self, threads: int) -> Any:
        with self._opening:
            if threads not in self._sessions:
                self._sessions[threads] = open_session(self._graph, threads)
            return self._sessions[threads]

    def close(self) -> None:
        """Drop the sessions."""
        self.closed = True
        self._pool.shutdown()
        self._sessions.clear()


def open_session(graph: Path, threads: int | None, provider: tuple[str, dict[str, str]] = (CPU, {})) -> Any:
    """ONNX Runtime's session for a graph. Raises `Failure` where it cannot load it."""
    _check_installed()
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed, too
    if threads:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(graph), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise Failure(f"{graph}: ONNX Runtime cannot load it ({_first_line(error)}); export the model again") from None


class CudaEngine(OpenedEngine):
    """An `Engine` on ONNX Runtime's CUDA provider. Calls from several threads are safe, one after the other."""

    name = "cuda"
    max_batch = 256

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        """Raises `Failure` where the graph would not run on a GPU."""
        _load_cuda()
        graph = bundle.path / bundle.variant(precision).graph
        self._session = open_session(graph, threads, (CUDA, {"use_tf32": "0"}))  # TF32 keeps 10 bits of float32's 23
        if self._session.get_providers()[0] != CUDA:
            raise Failure(
                "ONNX Runtime's CUDA provider cannot be used, it took the CPU instead (see its messages above); "
                f"it needs NVIDIA's driver and CUDA's libraries: {TO_GPU}"
            )
        self.precision, self._shape, self._takes_condition = precision, bundle.image_shape, bundle.stage > 0
        self._lock, self._bound = threading.Lock(), dict[tuple[int, int], tuple[Any, dict[str, Any]]]()

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`. Raises `BadInput` for wrong inputs, `Failure` where the GPU fails."""
        inputs = check_inputs(sample, timestep, class_label, guidance, self._shape, condition, self._takes_condition)
        with self._lock:
            self.check_open()
            try:
                binding, values = self._binding(inputs)
                for name, array in inputs.items():
                    if array.size:
                        values[name].update_inplace(np.ascontiguousarray(array))
                self._session.run_with_iobinding(binding)
                answer: np.ndarray = values["prediction"].numpy()  # a copy, as it comes from the GPU
            except Exception as error:  # onnxruntime has no common base class for its errors
                what = (
                    f"cuda: {len(sample)} pictures, {len(guidance)} guided: ONNX Runtime fails ({_first_line(error)})"
                )
                raise Failure(f"{what}; a smaller `batch` needs less memory, or take another engine") from None
        return answer

    def _binding(self, inputs: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
        """The session bound to arrays in GPU memory, and these by name; kept for the latest used shapes."""
        import onnxruntime as ort

        shape = len(inputs["sample"]), len(inputs["guidance"])
        if shape not in self._bound:
            arrays = inputs | {"prediction": inputs["sample"]}
            values = {
                name: ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, "cuda", 0)
                for name, array in arrays.items()
            }
            binding = self._session.io_binding()
            for name in inputs:
                binding.bind_ortvalue_input(name, values[name])
            binding.bind_ortvalue_output("prediction", values["prediction"])
            if len(self._bound) == MOST_SHAPES:
                del self._bound[next(iter(self._bound))]
            self._bound[shape] = binding, values
        self._bound[shape] = self._bound.pop(shape)  # last, as the latest used
        return self._bound[shape]

    def close(self) -> None:
        """Drop the session and its memory on the GPU."""
        with self._lock:
            self.closed = True
            self._bound.clear()
            self._session = None


def open_cuda(bundle: Bundle, precision: str, threads: int | None = None) -> CudaEngine:
    """CUDA at a precision; "auto" is float16 where its pictures are certified to be float32's, else float32."""
    if precision != "auto":
        return CudaEngine(bundle, precision, threads)
    against = _against_float16(bundle)
    opened = CudaEngine(bundle, "float32" if against else "float16", threads)
    log.info("cuda: %s", f"float32, because {against}" if against else "float16, the fastest, because it is certified")
    return opened


def _against_float16(bundle: Bundle) -> str | None:
    """Why float16 is not used where no precision was named; None where it is certified."""
    if "float16" not in bundle.variants:
        return "the bundle has no float16 variant (cfgdiff export --fp16 adds one)"
    variant = bundle.variants["float16"]
    certificate = variant.certificate
    if certificate is None or certificate.sha256 != graph_digest(variant):
        return f"float16 has no certificate (cfgdiff verify {bundle.path} makes one)"
    return None if certificate.passed else "float16 failed its verification"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _load_cuda() -> None:
    package = _check_installed()
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers() or not hasattr(ort, "preload_dlls"):
        raise Failure(f"expected onnxruntime-gpu 1.22 or later, found {package} {ort.__version__}; {TO_GPU}")
    with redirect_stdout(sys.stderr):  # it prints the names of missing libraries
        ort.preload_dlls()


def _check_installed() -> str:
    """The package that the module onnxruntime is of."""
    names = ("onnxruntime", "onnxruntime-gpu")
    installed = [name for name in names if _is_installed(name)]
    if not installed:
        raise Failure("ONNX Runtime is not installed; pip install onnxruntime")
    if len(installed) == 2:
        both = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
        raise Failure(f"{both}; pip uninstall -y {' '.join(names)}, then install the one you want")
    return installed[0]


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False
