"""ONNX Runtime on the CPU. onnxruntime is imported when an engine is opened, not before."""

from importlib import metadata

import numpy as np

from .bundle import Bundle
from .errors import Failure
from .inputs import check_inputs


class OrtEngine:
    """An `Engine` on ONNX Runtime's CPU provider. Calls from several threads are safe."""

    name = "cpu"
    max_batch = 4096

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None) -> None:
        _check_installed()
        import onnxruntime as ort

        graph = bundle.path / bundle.variant(precision).graph
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise Failure(f"{graph}: ONNX Runtime cannot load it ({str(error).splitlines()[0]}); export the model again") from None
        self.precision, self._shape = precision, bundle.image_shape

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """See `Engine.predict`. Raises `BadInput` for inputs that are not of the graph's shapes and types."""
        inputs = check_inputs(sample, timestep, class_label, guidance, self._shape)
        answer: np.ndarray = self._session.run(["prediction"], inputs)[0]
        return answer

    def close(self) -> None:
        """Drop the session."""
        del self._session


def _check_installed() -> None:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
            found.append(name)
        except metadata.PackageNotFoundError:
            continue
    if not found:
        raise Failure("ONNX Runtime is not installed; pip install onnxruntime")
    if len(found) == 2:
        raise Failure(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        )
