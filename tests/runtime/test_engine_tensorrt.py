"""Which TensorRT engine is taken and how it is run, on a fake GPU; in the end the same on a real one, where there is
one."""

import importlib
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine, load_bundle
from cfgdiff.runtime.cuda import Cuda
from cfgdiff.runtime.engine_tensorrt import MOST_PLANS, TensorRTEngine
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.sidecar import graph_digest

Write = Callable[..., Any]


def inputs(b: int, g: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((b, 3, 32, 32), np.float32),
        "timestep": rng.uniform(1, 1000, b).astype(np.float32),
        "class_label": rng.integers(0, 10, b),
        "guidance": rng.uniform(1, 4, g).astype(np.float32),
    }


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    """What the fake answers."""
    w = np.zeros(len(given["sample"]), np.float32)
    w[: len(given["guidance"])] = given["guidance"]
    return given["sample"] + (given["timestep"] + 10 * given["class_label"] + 100 * w)[:, None, None, None]


def check(engine: TensorRTEngine, b: int, g: int, seed: int = 0) -> None:
    given = inputs(b, g, seed)
    np.testing.assert_allclose(engine.predict(**given), expected(given), rtol=1e-5)


@pytest.fixture
def opened(gpu: Any, copied: Path, write_engine: Write) -> TensorRTEngine:
    write_engine()
    return TensorRTEngine(load_bundle(copied), "float32")


def test_every_number_of_guided_rows_at_any_time(opened: TensorRTEngine) -> None:
    assert (opened.name, opened.precision, opened.max_batch) == ("tensorrt", "float32", 8)
    for seed in range(3):
        for b, g in [(1, 0), (1, 1), (5, 3), (8, 8), (8, 0)]:
            check(opened, b, g, seed)


def test_answers_are_the_callers_own(opened: TensorRTEngine) -> None:
    first = opened.predict(**inputs(2, 1))
    before = first.copy()
    opened.predict(**inputs(2, 1, seed=1))
    np.testing.assert_array_equal(first, before)


def test_a_shape_is_captured_once_and_launched_from_then_on(gpu: Any, opened: TensorRTEngine) -> None:
    for seed in range(4):
        check(opened, 5, 3, seed)
    assert gpu.calls.count("cudaStreamBeginCapture") == 1 and gpu.calls.count("cudaGraphLaunch") == 3
    check(opened, 5, 2)
    assert gpu.calls.count("cudaStreamBeginCapture") == 2
    assert len(sys.modules["tensorrt_rtx"].setups) == 2  # a context for each
    setup = sys.modules["tensorrt_rtx"].setups[0]
    assert (setup.allocation, setup.dynamic_shapes_kernel_specialization_strategy, setup.cache) == (
        "shared",
        "eager",
        "cache",
    )


def test_the_shape_not_used_for_longest_is_dropped(gpu: Any, opened: TensorRTEngine) -> None:
    shapes = [(b, g) for b in range(1, 9) for g in range(b + 1)][: MOST_PLANS + 1]
    for b, g in shapes[:-1]:
        check(opened, b, g)
    check(opened, *shapes[0])
    check(opened, *shapes[-1])  # in place of the second
    captures = gpu.calls.count("cudaStreamBeginCapture")
    assert len(gpu.graphs) == MOST_PLANS
    check(opened, *shapes[0])
    assert gpu.calls.count("cudaStreamBeginCapture") == captures
    check(opened, *shapes[1])
    assert gpu.calls.count("cudaStreamBeginCapture") == captures + 1


@pytest.mark.parametrize("trouble", ["cuda", "tensorrt", "told beforehand"])
def test_what_cannot_be_captured_runs_call_by_call(
    gpu: Any, opened: TensorRTEngine, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    if trouble == "cuda":
        gpu.failing["cudaGraphInstantiate"] = gpu.cudaError_t.cudaErrorUnknown
    module: Any = sys.modules["tensorrt_rtx"]
    module.runs_in_capture, module.capturable = trouble != "tensorrt", trouble != "told beforehand"
    with caplog.at_level(logging.INFO, "cfgdiff"):
        for seed in range(3):
            check(opened, 5, 3, seed)
    assert caplog.text.count("B = 5, G = 3 runs without a CUDA graph") == 1
    assert {"cuda": "cudaErrorUnknown", "tensorrt": "cannot run it", "told beforehand": "cannot capture it"}[
        trouble
    ] in caplog.text
    assert "cudaGraphLaunch" not in gpu.calls


def test_plain_tensorrt_is_run_the_same_way(gpu: Any, copied: Path, write_engine: Write) -> None:
    write_engine(module="tensorrt", sm=("8.6",), driver="570.1")
    engine = TensorRTEngine(load_bundle(copied), "float32")
    check(engine, 5, 3)
    check(engine, 5, 3, seed=1)
    assert sys.modules["tensorrt"].setups == ["shared"]


@pytest.mark.parametrize(
    ("b", "change", "message"),
    [
        (2, {"sample": np.zeros((2, 3, 16, 16), np.float32)}, r"Expected float32 \(2, 3, 32, 32\)"),
        (2, {"class_label": np.zeros(2, np.int32)}, "Expected int64 .* class_label"),
        (9, {}, r"built for at most 8 pictures in a batch, got 9; .*cfgdiff export .* --batch MIN,OPT,MAX"),
        (0, {}, "built for at most 8 pictures in a batch, got 0"),
    ],
)
def test_wrong_inputs(
    gpu: Any, copied: Path, write_engine: Write, b: int, change: dict[str, np.ndarray], message: str
) -> None:
    write_engine(profile=(2, 4, 8))
    with pytest.raises(BadInput, match=message):
        TensorRTEngine(load_bundle(copied), "float32").predict(**(inputs(b, 0) | change))


def test_fewer_rows_than_the_engine_was_built_for_are_filled_up(gpu: Any, copied: Path, write_engine: Write) -> None:
    write_engine(profile=(4, 4, 8))
    engine = TensorRTEngine(load_bundle(copied), "float32")
    shapes = []
    plain = engine._first_run
    # type: ignore[method-assign,func-returns-value]
    engine._first_run = lambda b, g: shapes.append((b, g)) or plain(b, g)
    for b, g in [(1, 0), (1, 1), (3, 2), (6, 6)]:
        check(engine, b, g)
    assert shapes == [(4, 0), (4, 1), (4, 2), (6, 6)]


def test_a_shape_that_tensorrt_does_not_take(opened: TensorRTEngine) -> None:
    sys.modules["tensorrt_rtx"].refused.append((0,))
    with pytest.raises(Failure, match=r"TensorRT-RTX does not take guidance of shape \(0,\)"):
        opened.predict(**inputs(2, 0))
    check(opened, 2, 1)


def test_certificates(gpu: Any, copied: Path, write_engine: Write) -> None:
    bundle = load_bundle(copied)
    write_engine(passed=None)
    with pytest.raises(Failure, match=r"not certified; run cfgdiff verify"):
        TensorRTEngine(bundle, "float32")
    check(TensorRTEngine(bundle, "float32", uncertified=True), 2, 1)
    write_engine(passed=False)
    with pytest.raises(Failure, match=r"failed its verification \(batch 8 is off\)"):
        TensorRTEngine(bundle, "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": "a" * 64}, "built for graph aaaaaaaaaaaa… "),
        ({"version": "1.4"}, r"built for version 1.4 \(here: 1.7.1\); rebuild it here with"),
        ({"sm": ("8.9", "12.0")}, r"built for sm 8.9,12.0 \(here: 8.6\)"),
        ({"sm": ()}, "not the sidecar of an engine"),
        ({"driver": "550.9"}, r"built for driver 550.9 \(here: 570.1\)"),
        ({"module": "os"}, "not the sidecar of an engine"),
        ({"data": b"other"}, r"TensorRT-RTX cannot load it \(magic tag does not match\)"),
    ],
)
def test_engines_that_do_not_fit(
    gpu: Any, copied: Path, write_engine: Write, change: dict[str, Any], message: str
) -> None:
    write_engine(**change)
    with pytest.raises(Failure, match=message):
        TensorRTEngine(load_bundle(copied), "float32")
    assert not gpu.memory and not gpu.streams


def test_a_damaged_file(gpu: Any, copied: Path, write_engine: Write) -> None:
    write_engine().path.write_bytes(b"goof")
    with pytest.raises(Failure, match="damaged, sha256 is"):
        TensorRTEngine(load_bundle(copied), "float32")


def test_the_first_that_fits_is_taken(gpu: Any, copied: Path, write_engine: Write) -> None:
    bundle = load_bundle(copied)
    with pytest.raises(
        Failure, match=r"no TensorRT engine of precision float32 beside .*cfgdiff export --from-bundle .* --tensorrt$"
    ):
        TensorRTEngine(bundle, "float32")
    old, other = write_engine(version="1.4"), write_engine(sm=("12.0",))
    with pytest.raises(Failure, match=r"(?s)version 1.4.*sm 12.0|sm 12.0.*version 1.4"):
        TensorRTEngine(bundle, "float32")
    write_engine(profile=(1, 2, 3))
    assert TensorRTEngine(bundle, "float32").max_batch == 3
    for named in (old, other):
        with pytest.raises(Failure, match=named.path.name.replace("+", r"\+")):
            TensorRTEngine(bundle, "float32", built=named)


def test_what_is_missing_is_named(gpu: Any, copied: Path, write_engine: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(copied)
    write_engine()
    gpu.failing["cudaGetDeviceCount"] = gpu.cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(Failure, match=r"no GPU found \(CUDA says cudaErrorInsufficientDriver\)"):
        TensorRTEngine(bundle, "float32")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(Failure, match="pip install cuda-bindings"):
        TensorRTEngine(bundle, "float32")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(Failure, match=r"^TensorRT-RTX is not installed; pip install tensorrt-rtx cuda-bindings$"):
        TensorRTEngine(bundle, "float32")

    def half_installed(name: str) -> None:
        raise OSError("libnvinfer.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", half_installed)
    with pytest.raises(Failure, match=r"TensorRT-RTX cannot be loaded \(libnvinfer.so.*; pip install tensorrt-rtx"):
        TensorRTEngine(bundle, "float32")


def test_closing_gives_all_back_once(gpu: Any, opened: TensorRTEngine) -> None:
    check(opened, 5, 3)
    check(opened, 2, 0)
    opened.close()
    opened.close()
    assert not gpu.memory and not gpu.graphs and not gpu.streams
    with pytest.raises(Failure, match="the engine is closed; open it again"):
        opened.predict(**inputs(5, 3))


def test_a_failing_call_is_named_and_leaves_nothing_behind(gpu: Any, copied: Path, write_engine: Write) -> None:
    write_engine()
    gpu.failing["cudaMalloc"] = gpu.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(Failure, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
        TensorRTEngine(load_bundle(copied), "float32")
    assert not gpu.memory and not gpu.streams


def test_a_failing_launch_does_not_lose_its_graph(gpu: Any, opened: TensorRTEngine) -> None:
    check(opened, 5, 3)
    gpu.failing["cudaGraphLaunch"] = gpu.cudaError_t.cudaErrorUnknown
    with pytest.raises(Failure, match="cudaGraphLaunch failed with cudaErrorUnknown"):
        opened.predict(**inputs(5, 3))
    gpu.failing.clear()
    check(opened, 5, 3, seed=1)
    opened.close()
    assert not gpu.graphs


def test_threads_take_turns(opened: TensorRTEngine) -> None:
    wrong: list[AssertionError] = []

    def work(seed: int) -> None:
        try:
            for b in range(1, 9):
                check(opened, b, b // 2, seed)
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def real(packaged: Bundle, tmp_path_factory: pytest.TempPathFactory) -> TensorRTEngine:
    """An engine of the packaged bundle, built for the GPU that is here."""
    from cfgdiff.export.tensorrt import build_engine, find_module, plan_key

    variant = packaged.variant("float32")
    try:
        module, sm = find_module(), (Cuda().compute_capability(),)
        key = plan_key(module, graph_digest(variant), "float32", (1, 4, 8), sm)
    except Failure as error:
        pytest.skip(f"needs a GPU, TensorRT and cuda-bindings: {error}")
    graph = (packaged.path / variant.graph).read_bytes()
    built = build_engine(module, graph, key, tmp_path_factory.mktemp("engine"), lambda *_: None)
    return TensorRTEngine(packaged, "float32", uncertified=True, built=built)


@pytest.mark.gpu
@pytest.mark.parametrize(("b", "g"), [(1, 0), (1, 1), (5, 3), (8, 0), (8, 8)])
def test_a_real_gpu_answers_as_onnx_runtime_does(real: TensorRTEngine, engine: Engine, b: int, g: int) -> None:
    for seed in range(3):  # the first is run call by call, the others are launched
        given = inputs(b, g, seed)
        answer, reference = real.predict(**given), engine.predict(**given)
        assert np.linalg.norm(answer - reference) <= 1e-3 * np.linalg.norm(reference)
