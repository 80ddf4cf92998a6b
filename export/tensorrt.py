"""Builds TensorRT engines from a bundle's graphs, with `tensorrt` or `tensorrt_rtx`. It runs none of them."""

import hashlib
import importlib
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.files import cannot_write, write_whole
from cfgdiff.runtime.sidecar import (
    ANY_DRIVER,
    BuiltEngine,
    EngineKey,
    check_file,
    check_key,
    graph_digest,
    read_sidecar,
    sidecar_of,
    write_sidecar,
)
from cfgdiff.runtime.tensorrt_model import logger_of

from .precisions import PRECISIONS

MOST = 4096  # pictures in a batch, as the graph declares it
COMMON_SM = ("8.6", "8.9", "12.0")  # GeForce RTX 30, 40 and 50
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


def find_module() -> ModuleType:
    """`tensorrt` where a GPU is, else `tensorrt_rtx`, which builds without; the other where only that one is installed.

    Raises `Failure` where none is.
    """
    names = ("tensorrt", "tensorrt_rtx") if gpu_here() else ("tensorrt_rtx", "tensorrt")
    for name in names:
        with suppress(Exception):  # incomplete installations fail in many ways: a stub, a missing shared library
            module = importlib.import_module(name)
            if hasattr(module, "Builder"):
                return module
    raise Failure("TensorRT is not installed; pip install tensorrt-rtx (any machine) or tensorrt (with a GPU)")


def gpu_here() -> tuple[str, str] | None:
    """Compute capability, as 8.9, and driver version of the first GPU, None where nvidia-smi lists none."""
    command = ["nvidia-smi", "--query-gpu=compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    gpu = re.match(r"(\d+\.\d+), *(\S+)", answer)
    return (gpu[1], gpu[2]) if gpu else None


def parse_profile(text: str) -> tuple[int, int, int]:
    """Least, best and most pictures in a batch, from "MIN,OPT,MAX". Raises `BadInput`."""
    numbers = re.fullmatch(r"(\d{1,4}), ?(\d{1,4}), ?(\d{1,4})", text)
    least, best, most = map(int, numbers.groups()) if numbers else (0, 0, 0)
    if not 1 <= least <= best <= most <= MOST:
        raise BadInput(f"batch: expected 1 <= MIN <= OPT <= MAX (at most {MOST}) as in 1,64,256, found {text!r}")
    return least, best, most


def parse_sm(text: str) -> tuple[str, ...]:
    """Compute capabilities, as 8.6, from "86,89,120" or "8.6,8.9,12.0". Raises `BadInput`."""
    parts = [re.fullmatch(r"([1-9]\d?)\.?(\d)", part.strip()) for part in text.split(",")]
    if not all(parts):
        raise BadInput(f"sm: expected compute capabilities as in 86,89,120, found {text!r}")
    return tuple(dict.fromkeys(f"{part[1]}.{part[2]}" for part in parts if part))


def plan_key(
    module: ModuleType, graph_digest: str, precision: str, profile: tuple[int, int, int], sm: tuple[str, ...] | None
) -> EngineKey:  # fmt: skip
    """The key of the engine that `module` would build here; `sm` None is the GPU's, or `COMMON_SM` without one.

    Raises:
        BadInput: for architectures that `module` cannot build for, here or at all.
        Failure: plain TensorRT, which times its kernels, has no GPU to do that on.
    """
    name, version, gpu = module.__name__, module.__version__, gpu_here()
    if name == "tensorrt_rtx":  # its engines are for all drivers
        sm, driver = sm or ((gpu[0],) if gpu else COMMON_SM), ANY_DRIVER
        _capabilities(module, sm)
    elif gpu is None:
        problem = f"{name} {version} builds only where a GPU is, and nvidia-smi finds none"
        raise Failure(f"{problem}; pip install tensorrt-rtx, which needs none")
    elif sm not in (None, gpu[:1]):
        expected = f"expected {gpu[0]}, found {','.join(sm or ())}"
        raise BadInput(f"sm: {name} builds for the GPU that is here only, {expected}; leave it out")
    else:
        sm, driver = gpu[:1], gpu[1]
    return EngineKey(graph_digest, name, version, sm, driver, precision, profile)


def build_engine(module: ModuleType, graph: bytes, key: EngineKey, target: Path, progress: Progress) -> BuiltEngine:
    """The engine of `key` in the folder `target`, with its sidecar; built from the ONNX `graph` where it is missing.

    Raises:
        Failure: then, as on Ctrl-C, `target` is as it was.
    """
    path = target / key.file_name
    with suppress(Failure):  # missing, damaged or of another key: it is built
        engine = read_sidecar(sidecar_of(path))
        check_key(engine, key)
        check_file(engine)
        return engine
    data = _build(module, graph, key, progress)
    engine = BuiltEngine(path, key, hashlib.sha256(data).hexdigest())
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    with ExitStack() as undo:
        undo.callback(path.unlink, missing_ok=True)
        write_whole(path, data)
        write_sidecar(engine)  # last: no engine is taken without it
        undo.pop_all()
    return engine


def _build(module: ModuleType, graph: bytes, key: EngineKey, progress: Progress) -> bytes:
    log, monitor = logger_of(module), _monitor(module, progress)
    log.last = ""
    with _ctrl_c_stops(monitor):  # from the first call on: native code loses what is raised in the logger
        serialized = _serialized(module, graph, key, log, monitor)
    if monitor.error is not None:
        raise monitor.error
    if serialized is None:
        raise _failure(key, log)
    return serialized


def _serialized(module: ModuleType, graph: bytes, key: EngineKey, log: Any, monitor: Any) -> bytes | None:
    """None where it was not built."""
    try:
        builder = module.Builder(log)
    except TypeError:  # raised by the binding where there is no builder
        raise _failure(key, log) from None
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # without the flag, every network is
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = module.OnnxParser(network, log)  # it owns the weights until the engine is built
    if not parser.parse(graph):
        raise _untaken(parser)
    config = _configure(module, builder, network, key)
    config.progress_monitor = monitor
    timings = None  # of kernels; TensorRT-RTX measures none while it builds
    if key.module != "tensorrt_rtx":
        timings = cache_folder() / f"timing-{key.module}-{key.version}-sm{key.sm[0].replace('.', '')}.cache"
        _load_timings(config, timings)
    serialized = builder.build_serialized_network(network, config)
    if timings is not None and serialized is not None:
        _keep_timings(config, timings)
    return None if serialized is None else bytes(serialized)


def _configure(module: ModuleType, builder: Any, network: Any, key: EngineKey) -> Any:
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    least, best, most = key.profile
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        first = (0 if tensor.name == "guidance" else least, best, most)  # any number of rows may be guided
        profile.set_shape(tensor.name, *((rows, *tuple(tensor.shape)[1:]) for rows in first))
    config.add_optimization_profile(profile)
    config.clear_flag(module.BuilderFlag.TF32)  # float32 means float32; float16 is the fast one
    if key.module == "tensorrt_rtx":
        # Without it, runs could not be captured as CUDA graphs.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(key.sm)
        for i, capability in enumerate(_capabilities(module, key.sm)):
            config.set_compute_capability(capability, i)
    return config


def _capabilities(module: ModuleType, sm: tuple[str, ...]) -> list[Any]:
    """The module's own names of `sm`. Raises `BadInput` listing what there is."""
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in module.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    for part in sm:
        if part not in known:
            gpu = gpu_here()
            own = (
                "; for this GPU, pip install tensorrt" if gpu and gpu[0] == part else ""
            )  # RTX is not for H100, H200, ...
            problem = f"{module.__name__} {module.__version__} cannot build for {part}"
            raise BadInput(f"sm: {problem}; choose from {', '.join(known)}{own}")
    return [known[part] for part in sm]


def _monitor(module: ModuleType, progress: Progress) -> Any:
    """Passes progress on. With an `error`, which native code would lose, the build ends at its next step."""

    class Monitor(module.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.error: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            self.report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            return self.report(phase, step + 1)

        def phase_finish(self, phase: str) -> None:
            self.report(phase, self.totals[phase])

        def report(self, phase: str, done: int) -> bool:
            try:
                if self.error is None:
                    progress(phase, done, self.totals[phase])
            except Exception as error:
                self.error = error
            return self.error is None

    return Monitor()


@contextmanager
def _ctrl_c_stops(monitor: Any) -> Iterator[None]:
    """Ctrl-C ends the build. Only Python's main thread may handle signals; in others nothing changes."""

    def stop(*_: Any) -> None:
        monitor.error = KeyboardInterrupt()

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, stop) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)


def _load_timings(config: Any, file: Path) -> None:
    """Start from the timings of earlier builds; damaged ones, or those of another GPU, are measured again."""
    try:
        cache = config.create_timing_cache(file.read_bytes())
    except OSError:
        cache = None
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timings(config: Any, file: Path) -> None:
    with suppress(OSError, Failure):  # without them the next build only takes longer
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, config.get_timing_cache().serialize())


def _untaken(parser: Any) -> Failure:
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())
    if not error.node_operator():
        return Failure(f"TensorRT cannot read the graph: {reason}; export the model again")
    node = f"node '{error.node_name()}' (operator {error.node_operator()})"
    return Failure(f"TensorRT cannot take {node}: {reason}; export without --tensorrt, or change the network")


def _failure(key: EngineKey, log: Any) -> Failure:
    reason = log.last or "it does not say why"
    advice = "try a smaller `batch`, or another version of it"
    return Failure(f"{key.module} {key.version} cannot build {key.file_name}: {reason}; {advice}")


def build_engines(
    bundle: Bundle, profile: tuple[int, int, int], sm: tuple[str, ...] | None, progress: Progress
) -> Iterator[BuiltEngine]:
    """An engine for each variant, beside the bundle; `progress` receives every phase of a build."""
    module = find_module()
    for precision, variant in bundle.variants.items():
        key = plan_key(module, graph_digest(variant), precision, profile, sm)
        graph = (bundle.path / variant.graph).read_bytes()
        if for_tensorrt := PRECISIONS[precision].for_tensorrt:
            graph = for_tensorrt(onnx.load_from_string(graph)).SerializeToString(deterministic=True)

        def report(phase: str, done: int, total: int, precision: str = precision) -> None:
            progress(f"{precision} engine: {phase}", done, total)

        yield build_engine(module, graph, key, bundle.path, report)
