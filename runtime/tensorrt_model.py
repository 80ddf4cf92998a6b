"""Loads engines and makes execution contexts with `tensorrt` or `tensorrt_rtx`, which share an interface.

It knows nothing of CUDA graphs, buffers and bundles.
"""

import importlib
import logging
from functools import cache
from typing import Any

from .errors import Failure
from .sidecar import MODULES, BuiltEngine, rebuild

log = logging.getLogger("cfgdiff")


def import_module(built: BuiltEngine) -> Any:
    """The module that an engine was built with. Raises `Failure` where it cannot be imported."""
    name = built.key.module
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a missing shared library
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        problem = "is not installed" if missing else f"cannot be loaded ({error})"
        raise Failure(f"{MODULES[name]} {problem}; pip install {name.replace('_', '-')} cuda-bindings") from None


@cache
def logger_of(module: Any) -> Any:
    """The logger of a module; `last` is its last error in one line. TensorRT keeps the first logger of a process."""

    class Logger(module.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            line = " ".join(message.split())
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.last = line
            log.debug("tensorrt: %s", line)

    return Logger()


class Model:
    """A loaded engine. Its contexts compute in `scratch_size` bytes, which they may share where they run one by one."""

    def __init__(self, module: Any, data: bytes, built: BuiltEngine) -> None:
        """Raises `Failure` with TensorRT's reason where it does not load."""
        self._built, self._logger = built, logger_of(module)
        self._logger.last = ""
        try:
            engine = module.Runtime(self._logger).deserialize_cuda_engine(data)
        except (TypeError, RuntimeError):  # raised by the binding where there is no runtime
            engine = None
        if engine is None:
            raise self.failure("cannot load it")
        self._engine = engine
        self._setup = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if built.key.module == "tensorrt_rtx":
            self._setup = self._compile_at_once(module, self._setup)
        self.scratch_size = max(int(engine.device_memory_size_v2), 1)  # an address is required even for none

    def _compile_at_once(self, module: Any, allocation: Any) -> Any:
        """Make TensorRT-RTX compile its best kernels now; by default they come too late for a captured graph."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        self._kernels = config.create_runtime_cache()  # shared by the contexts, which would otherwise compile their own
        config.set_runtime_cache(self._kernels)
        return config

    def new_context(self, scratch: int, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> Any:
        """A context for inputs of these shapes, with all tensors at these addresses."""
        self._logger.last = ""
        context = self._engine.create_execution_context(self._setup)
        if context is None:
            raise self.failure("cannot make an execution context")
        context.set_device_memory(scratch, self.scratch_size)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self.failure(f"does not take {name} of shape {shape}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self.failure(f"does not take an address for {name}")
        return context

    def execute(self, context: Any, stream: int) -> None:
        """Enqueue a run of the context on the stream."""
        self._logger.last = ""
        if not context.execute_async_v3(stream):
            raise self.failure("cannot run it")

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether a run of the context may be captured; only TensorRT-RTX knows beforehand."""
        return self._built.key.module != "tensorrt_rtx" or bool(context.is_stream_capturable(stream))

    def failure(self, problem: str) -> Failure:
        """An error with TensorRT's last message."""
        reason = self._logger.last or "it does not say why"
        module = MODULES[self._built.key.module]
        return Failure(
            f"{self._built.path}: {module} {problem} ({reason}); {rebuild(self._built)}, or take another engine"
        )
