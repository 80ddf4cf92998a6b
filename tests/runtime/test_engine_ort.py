"""The graph's contract as ONNX Runtime keeps it, on the CPU; its CUDA provider on a stand-in, and on a GPU where there
is one."""

import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from cfgdiff.runtime import Bundle, Engine, engine_ort, open_engine
from cfgdiff.runtime.engine_ort import CudaEngine
from cfgdiff.runtime.errors import BadInput, Failure


def inputs(b: int, w: list[float], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((b, 3, 32, 32), np.float32),
        "timestep": rng.uniform(1, 1000, b).astype(np.float32),
        "class_label": np.arange(b) % 10,
        "guidance": np.array(w, np.float32),
    }


def test_w_of_one_is_the_conditional_prediction(engine: Engine) -> None:
    guided, plain = engine.predict(**inputs(5, [1] * 5)), engine.predict(**inputs(5, []))
    np.testing.assert_allclose(guided, plain, atol=1e-4)


def test_guidance_is_linear_and_touches_its_rows_only(engine: Engine) -> None:
    uncond, cond, beyond = (engine.predict(**inputs(5, [w] * 3)) for w in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(beyond[:3], (uncond + 3 * (cond - uncond))[:3], atol=1e-4)
    np.testing.assert_allclose(beyond[3:], cond[3:], atol=1e-4)
    assert np.abs(uncond - cond)[:3].max() > 1e-2


def test_threads_and_neighbours_change_no_bit_of_an_answer(packaged: Bundle, engine: Engine) -> None:
    given = inputs(37, [3.0] * 20)
    whole = engine.predict(**given)
    for threads, lo, hi in [(1, 0, 37), (3, 0, 37), (2, 9, 30), (2, 19, 21)]:
        other = open_engine(packaged, "cpu", threads=threads)
        np.testing.assert_array_equal(
            other.predict(**{name: array[lo:hi] for name, array in given.items()}), whole[lo:hi]
        )
        other.close()


def test_many_rows_are_shared_out_among_the_threads(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, callers = open_engine(packaged, "cpu", threads=2), dict[int, set[str]]()
    open_session = engine_ort.open_session

    class Watched:
        def __init__(self, graph: Path, threads: int) -> None:
            assert threads == 1
            self.session, self.both = open_session(graph, threads), threading.Barrier(2, timeout=30)

        def run(self, names: list[str], part: dict[str, np.ndarray]) -> list:
            self.both.wait()  # two threads are here at a time
            callers.setdefault(len(part["sample"]), set()).add(threading.current_thread().name)
            return self.session.run(names, part)

    monkeypatch.setattr(engine_ort, "open_session", Watched)
    opened.predict(**inputs(64, [2.0] * 64))
    assert list(callers) == [16] and len(callers[16]) == 2
    opened.close()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "sample",
            np.zeros((2, 3, 16, 16), np.float32),
            r"Expected float32 \(2, 3, 32, 32\), got .* for input: sample",
        ),
        ("timestep", np.zeros(2), "got float64"),
        ("guidance", np.ones(3, np.float32), "at most 2 rows of guidance, got 3"),
        ("sample", np.zeros((0, 3, 32, 32), np.float32), "at least 1 row, got 0 for input: sample"),
        ("timestep", [1.0, 1.0], "a NumPy array with a row for each picture, got list for input: timestep"),
        ("guidance", np.float32(1), "a NumPy array with a row for each picture, got float32 for input: guidance"),
    ],
)
def test_wrong_inputs_are_named(engine: Engine, name: str, value: np.ndarray, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        engine.predict(**(inputs(2, []) | {name: value}))


def test_both_onnxruntimes_at_once_are_reported(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    for name in ("cpu", "cuda"):
        with pytest.raises(Failure, match=r"both installed.*pip uninstall"):
            open_engine(packaged, name)


class Value(ort.OrtValue):
    """Memory "of the GPU": what is read from it is a copy."""

    def numpy(self) -> np.ndarray:
        return super().numpy().copy()


class StandIn:
    """ONNX Runtime "with CUDA": the real one, on the CPU."""

    SessionOptions, __version__ = ort.SessionOptions, "1.22.0"

    def __init__(self) -> None:
        self.available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.usable, self.values, self.bindings, self.calls = True, 0, 0, list[str]()
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.allocate)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        print("Failed to load libcublas.so")
        self.calls.append("preload")

    def allocate(self, shape: tuple[int, ...], kind: type, device: str, number: int) -> Value:
        assert (device, number) == ("cuda", 0)
        self.values += 1
        return Value.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    def InferenceSession(self, path: str, options: Any, providers: list, enable_fallback: int) -> Any:  # noqa: N802
        assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"})] and not enable_fallback
        real, outer = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), self
        self.calls.append("session")

        class Session:
            def get_providers(self) -> list[str]:
                return outer.available if outer.usable else ["CPUExecutionProvider"]

            def io_binding(self) -> Any:
                outer.bindings += 1
                return real.io_binding()

            def run_with_iobinding(self, binding: Any) -> None:
                real.run_with_iobinding(binding)

        return Session()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """onnxruntime-gpu is installed, and a GPU is there."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_cuda_answers_as_the_cpu_does_with_memory_bound_once_a_shape(
    gpu: StandIn, packaged: Bundle, engine: Engine
) -> None:
    cuda = open_engine(packaged, "cuda", "float32", threads=2)
    assert (cuda.name, cuda.precision, cuda.max_batch) == ("cuda", "float32", 256) and gpu.calls == [
        "preload",
        "session",
    ]
    answers = []
    for seed in range(2):
        for b, w in [(1, []), (1, [2.0]), (5, [3.0, 1.5, 2.0]), (8, [4.0] * 8)]:
            given = inputs(b, w, seed)
            answers.append((cuda.predict(**given), engine.predict(**given)))
    for answer, expected in answers:  # each is the caller's own
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert gpu.bindings == 4 and gpu.values == 4 * 5
    turned = inputs(8, [4.0] * 8)
    turned["sample"] = np.asfortranarray(turned["sample"])
    np.testing.assert_allclose(cuda.predict(**turned), engine.predict(**turned), atol=1e-5)
    with pytest.raises(BadInput, match="at most 2 rows"):
        cuda.predict(**inputs(2, [1.0] * 3))


def test_the_shape_not_used_for_longest_is_given_back(
    gpu: StandIn, packaged: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ort, "MOST_SHAPES", 2)
    cuda = CudaEngine(packaged, "float32")
    for b, bindings in [(1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)]:  # 3 in place of 2, then 2 in place of 3
        cuda.predict(**inputs(b, []))
        assert gpu.bindings == bindings
    cuda.close()


def test_threads_take_turns_on_the_gpu(gpu: StandIn, packaged: Bundle, engine: Engine) -> None:
    cuda, wrong = CudaEngine(packaged, "float32"), list[AssertionError]()

    def work(seed: int) -> None:
        try:
            given = inputs(2, [2.0], seed)
            np.testing.assert_allclose(cuda.predict(**given), engine.predict(**given), atol=1e-5)
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and gpu.bindings == 1


def old(gpu: StandIn, patch: pytest.MonkeyPatch) -> None:
    patch.delattr(StandIn, "preload_dlls")


def without(gpu: StandIn, patch: pytest.MonkeyPatch) -> None:
    gpu.available = ["CPUExecutionProvider"]


def silent(gpu: StandIn, patch: pytest.MonkeyPatch) -> None:
    gpu.usable = False


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (without, r"^expected onnxruntime-gpu 1\.22 or later, found onnxruntime\S* 1\.22\.0; "
                  r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu\[cuda,cudnn\]'$"),
        (old, "expected onnxruntime-gpu 1.22 or later"),
        (silent, "it took the CPU instead .*NVIDIA's driver and CUDA's libraries: pip uninstall"),
    ],
)  # fmt: skip
def test_cuda_is_never_the_cpu(
    gpu: StandIn,
    packaged: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    trouble: Callable,
    message: str,
) -> None:
    trouble(gpu, monkeypatch)
    with pytest.raises(Failure, match=message):
        open_engine(packaged, "cuda")
    assert capsys.readouterr().out == ""  # what ONNX Runtime prints goes to standard error


def test_a_gpu_that_fails_says_what_to_do(gpu: StandIn, packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaEngine(packaged, "float32")

    def exhausted(*_: object) -> None:
        raise RuntimeError("Failed to allocate memory\nin a stack\nof calls")

    monkeypatch.setattr(gpu.OrtValue, "ortvalue_from_shape_and_type", exhausted)
    with pytest.raises(
        Failure,
        match=r"^cuda: 5 pictures, 1 guided: ONNX Runtime fails \(Failed to allocate memory\); a smaller `batch`",
    ):
        cuda.predict(**inputs(5, [1.0]))


@pytest.fixture(scope="module")
def real(packaged: Bundle) -> Engine:
    """The packaged model on the GPU that is here."""
    try:
        return open_engine(packaged, "cuda", "float32")
    except Failure as error:
        pytest.skip(f"needs an NVIDIA GPU and onnxruntime-gpu: {error}")


@pytest.mark.gpu
@pytest.mark.parametrize(("b", "g"), [(1, 0), (1, 1), (5, 3), (8, 0), (8, 8), (256, 256)])
def test_a_real_gpu_answers_as_the_cpu_does(real: Engine, engine: Engine, b: int, g: int) -> None:
    for seed in range(2):  # the first binds, the second finds it
        given = inputs(b, [1.0 + i / 100 for i in range(g)], seed)
        answer, expected = real.predict(**given), engine.predict(**given)
        assert np.linalg.norm(answer - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_with_closes_it_and_a_closed_one_says_so(name: str, packaged: Bundle, request: pytest.FixtureRequest) -> None:
    if name == "cuda":
        request.getfixturevalue("gpu")
    with open_engine(packaged, name, "float32", threads=1) as opened:
        assert opened.predict(**inputs(2, [2.0])).shape == (2, 3, 32, 32)
    opened.close()  # once more
    with pytest.raises(Failure, match=f"^{name}: the engine is closed; open it again$"):
        opened.predict(**inputs(2, [2.0]))
