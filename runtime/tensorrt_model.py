"""What is asked of `tensorrt` and `tensorrt_rtx`, which have one interface: load an engine, make execution contexts, say what went wrong.

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
    """The module that an engine was built with. Raises `Failure` where it cannot be had."""
    name = built.key.module
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        found = "is not installed" if missing else f"cannot be loaded ({error})"
        raise Failure(f"{MODULES[name]} {found}; pip install {name.replace('_', '-')} cuda-bindings") from None


@cache
def logger_of(module: Any) -> Any:
    """The one logger of a module, whose `last` is its last error in one line. TensorRT takes no other after the first of a process."""

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
    """An engine that was loaded. `scratch_size` is how many bytes its contexts compute in; they may share them, running one by one."""

    def __init__(self, module: Any, data: bytes, built: BuiltEngine) -> None:
        """Raises `Failure` with what TensorRT says where it does not load."""
        self._built, self._logger = built, logger_of(module)
        self._logger.last = ""
        try:
            engine = module.Runtime(self._logger).deserialize_cuda_engine(data)
        except (TypeError, RuntimeError):  # what the binding makes of a runtime that could not be had
            engine = None
        if engine is None:
            raise self.failure("cannot load it")
        self._engine = engine
        self._setup = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if built.key.module == "tensorrt_rtx":
            self._setup = self._compile_at_once(module, self._setup)
        self.scratch_size = max(
            int(engine.device_memory_size_v2), 1
        )  # an address is wanted even where nothing is needed

    def _compile_at_once(self, module: Any, allocation: Any) -> Any:
        """TensorRT-RTX compiles kernels here. By default the best ones come later, too late for a graph that is captured at once."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        self._kernels = (
            config.create_runtime_cache()
        )  # shared by the contexts, each of which would compile its own else
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
        """Put a run of the context onto the stream."""
        self._logger.last = ""
        if not context.execute_async_v3(stream):
            raise self.failure("cannot run it")

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether a run of the context may be captured; only TensorRT-RTX can tell beforehand."""
        return self._built.key.module != "tensorrt_rtx" or bool(context.is_stream_capturable(stream))

    def failure(self, what: str) -> Failure:
        """An error that says what TensorRT said last."""
        said = self._logger.last or "it does not say why"
        module = MODULES[self._built.key.module]
        return Failure(f"{self._built.path}: {module} {what} ({said}); {rebuild(self._built)}, or take another engine")
