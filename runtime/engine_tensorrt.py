"""TensorRT on GPU 0, with a captured CUDA graph for every shape. It runs engines built beside a bundle and builds none.

TensorRT and CUDA's binding are imported when an engine is opened, not before.
"""

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bundle import Bundle
from .cuda import Cuda
from .engine import OpenedEngine
from .errors import BadInput, Failure
from .inputs import check_inputs
from .sidecar import (
    BuiltEngine,
    build_command,
    check_certificate,
    check_file,
    check_key,
    engines_beside,
    expected_key,
    rebuild,
)
from .tensorrt_model import Model, import_module

log = logging.getLogger("cfgdiff")
FASTEST = ("float16", "float32")  # the precisions that "auto" tries
MOST_PLANS = 16  # a run has about four: full and last batches, inside and outside the guidance interval


@dataclass(frozen=True)
class _Plan:
    """How a shape is run. `graph` is None where it could not be captured: then call by call."""

    context: Any
    graph: Any | None


class TensorRTEngine(OpenedEngine):
    """An `Engine` on TensorRT. Calls from several threads are safe; they run one after the other."""

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None = None,
        uncertified: bool = False,
        built: BuiltEngine | None = None,
    ) -> None:
        """Open the first engine beside the bundle that fits this machine.

        Args:
            precision: of the engine, or "auto" for the fastest.
            threads: of the CPU; the GPU needs none.
            uncertified: also accept an engine that `cfgdiff verify` did not pass.
            built: this engine and no other, whatever `precision` says.

        Raises:
            Failure: there is none, it does not fit, is damaged or not certified; a module or the GPU is missing.
        """
        self._built, module, data, self._cuda = _choose(bundle, precision, uncertified, built)
        key = self._built.key
        self.precision, (self._least, _, self.max_batch) = key.precision, key.profile
        self._shape, self._takes_condition, self._lock = bundle.image_shape, bundle.stage > 0, threading.Lock()
        self._plans: dict[tuple[int, int], _Plan] = {}
        with ExitStack() as held:
            self._stream = self._cuda.create_stream()
            held.callback(self._cuda.destroy_stream, self._stream)
            self._model = Model(module, data, self._built)
            self._allocate(held)
            held.callback(self._drop_plans, 0)
            self._held = held.pop_all()

    def _allocate(self, held: ExitStack) -> None:
        """Buffers for the largest batch, as graphs keep addresses, and the memory that the contexts compute in."""
        rows, cuda = (self.max_batch,), self._cuda
        picture = (*rows, *self._shape)
        kinds: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "sample": (picture, np.float32), "timestep": (rows, np.float32), "class_label": (rows, np.int64),
            "guidance": (rows, np.float32), "prediction": (picture, np.float32),
        }  # fmt: skip
        if self._takes_condition:
            kinds |= {"condition": (picture, np.float32), "condition_noise": (rows, np.float32)}
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, int] = {}
        for name, (shape, kind) in kinds.items():
            self._host[name] = cuda.alloc_pinned(shape, kind)
            held.callback(cuda.free_pinned, self._host[name])
            self._device[name] = cuda.alloc_device(self._host[name].nbytes)
            held.callback(cuda.free_device, self._device[name])
        self._scratch = cuda.alloc_device(self._model.scratch_size)
        held.callback(cuda.free_device, self._scratch)

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`.

        Raises:
            BadInput: inputs of other shapes or types, or of a batch that the engine was not built for.
            Failure: the engine is closed, or the GPU fails.
        """
        inputs = check_inputs(
            sample, timestep, class_label, guidance, self._shape, condition, self._takes_condition, least=0
        )  # the batch: below
        b, g = len(sample), len(guidance)
        if not 1 <= b <= self.max_batch:
            raise BadInput(
                f"{self._built.path}: built for at most {self.max_batch} pictures in a batch, got {b}; "
                f"give it fewer, or {rebuild(self._built, 'MIN,OPT,MAX')}"
            )
        with self._lock:
            self.check_open()
            rows = max(b, self._least)  # an engine for at least MIN rows gets copies of the first row, unguided
            for name, array in inputs.items():
                self._host[name][: len(array)] = array
                if name != "guidance":
                    self._host[name][b:rows] = array[:1]
            self._run(rows, g)
            return self._host["prediction"][:b].copy()

    def _run(self, b: int, g: int) -> None:
        plan = self._plans.pop((b, g), None)
        if plan is None:
            self._drop_plans(MOST_PLANS - 1)
            self._plans[b, g] = self._first_run(b, g)
            return
        self._plans[b, g] = plan  # last, as the latest used
        if plan.graph is None:
            self._enqueue(plan.context, b, g)
        else:
            self._cuda.launch(plan.graph, self._stream)
        self._cuda.synchronize(self._stream)

    def _first_run(self, b: int, g: int) -> _Plan:
        """Run a shape call by call, which sets up everything that first use needs, and then capture it.

        Each shape has its own context: a graph is valid only as long as its context does not change.
        """
        shapes = {name: self._rows(name, b, g).shape for name in self._host if name != "prediction"}
        context = self._model.new_context(self._scratch, shapes, self._device)
        self._enqueue(context, b, g)
        self._cuda.synchronize(self._stream)
        try:
            if not self._model.capturable(context, self._stream):
                raise Failure("TensorRT-RTX cannot capture it")
            graph = self._cuda.capture(lambda: self._enqueue(context, b, g), self._stream)
        except Failure as error:
            log.info("tensorrt: B = %d, G = %d runs without a CUDA graph, which is slower: %s", b, g, error)
            graph = None
        return _Plan(context, graph)

    def _rows(self, name: str, b: int, g: int) -> np.ndarray:
        return self._host[name][: g if name == "guidance" else b]

    def _enqueue(self, context: Any, b: int, g: int) -> None:
        for name, address in self._device.items():
            if name != "prediction" and self._rows(name, b, g).size:
                self._cuda.copy_in(address, self._rows(name, b, g), self._stream)
        self._model.execute(context, self._stream)
        self._cuda.copy_out(self._rows("prediction", b, g), self._device["prediction"], self._stream)

    def _drop_plans(self, keep: int) -> None:
        """Drop all but the latest used ones."""
        while len(self._plans) > keep:
            plan = self._plans.pop(next(iter(self._plans)))
            if plan.graph is not None:
                self._cuda.destroy_graph(plan.graph)

    def close(self) -> None:
        """Free the memory of host and GPU."""
        with self._lock:
            if not self.closed:
                self.closed = True
                self._held.close()
                del self._model, self._host


def open_built(bundle: Bundle, built: BuiltEngine, uncertified: bool = False) -> TensorRTEngine:
    """One of the engines beside a bundle; see `TensorRTEngine`."""
    return TensorRTEngine(bundle, built.key.precision, None, uncertified, built)


def _choose(
    bundle: Bundle, precision: str, uncertified: bool, built: BuiltEngine | None
) -> tuple[BuiltEngine, Any, bytes, Cuda]:
    """The first engine that fits, its module, its bytes and the GPU. Raises `Failure` with the reasons against each."""
    reasons: dict[str, None] = {}
    for engine in [built] if built else _candidates(bundle, precision):
        try:
            checked = _check(bundle, engine, uncertified)
        except Failure as error:
            reasons[str(error)] = None
            continue
        for reason in reasons:
            log.info("tensorrt: %s", reason)
        return engine, *checked
    raise Failure("; ".join(reasons))


def _candidates(bundle: Bundle, precision: str) -> list[BuiltEngine]:
    """The engines beside a bundle at that precision, or at those in `FASTEST`. Raises `Failure` for none."""
    wanted, beside = FASTEST if precision == "auto" else (precision,), engines_beside(bundle.path)
    candidates = [engine for name in wanted for engine in beside if engine.key.precision == name]
    if not candidates:
        how = f"build one with: {build_command(bundle.path)}"
        raise Failure(f"no TensorRT engine of precision {' or '.join(wanted)} beside {bundle.path}; {how}")
    return candidates


def _check(bundle: Bundle, engine: BuiltEngine, uncertified: bool) -> tuple[Any, bytes, Cuda]:
    key = engine.key
    # First the graph alone, which needs neither TensorRT nor a GPU.
    check_key(engine, expected_key(bundle, engine, key.version, next(iter(key.sm), "none"), key.driver))
    if not uncertified:
        check_certificate(engine)
    data, module = check_file(engine), import_module(engine)
    cuda = Cuda()
    here = module.__version__, cuda.compute_capability(), cuda.driver_version()
    check_key(engine, expected_key(bundle, engine, *here))
    return module, data, cuda
