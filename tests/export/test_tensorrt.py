"""Real engines of TensorRT-RTX, which builds without a GPU: whole or not there, found again, and one line where none
can be built."""

import errno
import hashlib
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from cfgdiff.export.quantise import symmetric
from cfgdiff.export.tensorrt import _load_timings, build_engine
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import (
    ANY_DRIVER,
    EngineKey,
    check_file,
    check_key,
    read_sidecar,
    sidecar_of,
    write_sidecar,
)


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """TensorRT-RTX."""
    return pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")


def tiny(op: str = "Relu") -> bytes:
    """A graph of two nodes, of which an engine is built in a tenth of a second."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["sample", "weight"], ["y"], name="first"),
        helper.make_node(op, ["y"], ["prediction"], name="second"),
    ]
    inputs = [helper.make_tensor_value_info("sample", 1, ["B", 3, 8, 8])]
    graph = helper.make_graph(
        nodes, "tiny", inputs, [helper.make_tensor_value_info("prediction", 1, ["B", 4, 6, 6])], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def key_of(module: ModuleType, graph: bytes, precision: str = "float32", sm: tuple[str, ...] = ("8.6",)) -> EngineKey:
    digest = hashlib.sha256(graph).hexdigest()
    return EngineKey(digest, module.__name__, module.__version__, sm, ANY_DRIVER, precision, (1, 2, 4))


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.mark.parametrize(("precision", "sm"), [("float32", ("8.6", "8.9")), ("float16", ("12.0",)), ("int8", ("8.9",))])
def test_an_engine_is_built_with_its_sidecar(
    small_bundle: Bundle,
    rtx: ModuleType,
    tmp_path: Path,
    precision: str,
    sm: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    graph = onnx.load(str(small_bundle.path / small_bundle.variant(precision).graph))
    data = (symmetric(graph) if precision == "int8" else graph).SerializeToString()
    key, seen = key_of(rtx, data, precision, sm), list[tuple[str, int, int]]()
    engine = build_engine(rtx, data, key, tmp_path / "new", lambda *step: seen.append(step))
    assert engine.path == tmp_path / "new" / key.file_name and engine.key == key and engine.certificate is None
    assert read_sidecar(sidecar_of(engine.path)) == engine
    assert sorted(engine.path.parent.iterdir()) == [engine.path, sidecar_of(engine.path)]
    assert diagnosed(rtx, check_file(engine)) == 0 != diagnosed(rtx, b"no engine" * 100)
    assert (
        all(0 <= done <= total for _, done, total in seen)
        and seen[0][1:] == (0, seen[-1][2])
        and seen[-1][1] == seen[-1][2]
    )
    assert "".join(capfd.readouterr()) == ""


def test_it_is_told_the_architectures_and_how_many_rows_may_come(
    graph: onnx.ModelProto, rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class Spy(rtx.Builder):  # type: ignore[name-defined,misc]
        def create_builder_config(self) -> object:
            made["config"] = super().create_builder_config()
            return made["config"]

        def create_optimization_profile(self) -> object:
            made["profile"] = super().create_optimization_profile()
            return made["profile"]

        def build_serialized_network(self, network: object, config: object) -> None:
            """Nothing is built: this test looks only at what is asked for."""

    monkeypatch.setattr(rtx, "Builder", Spy)
    with pytest.raises(Failure, match="it does not say why"):
        build_engine(rtx, graph.SerializeToString(), key_of(rtx, b"", sm=("8.9", "12.0")), tmp_path, quiet)
    shapes = {
        name: [tuple(shape) for shape in made["profile"].get_shape(name)]
        for name in ("sample", "timestep", "class_label", "guidance")
    }
    rows = [(1,), (2,), (4,)]
    assert shapes == {
        "sample": [(b, 3, 16, 16) for (b,) in rows],
        "timestep": rows,
        "class_label": rows,
        "guidance": [(0,), (2,), (4,)],
    }
    chosen = [made["config"].get_compute_capability(i) for i in range(made["config"].num_compute_capabilities)]
    assert chosen == [rtx.ComputeCapability.SM89, rtx.ComputeCapability.SM120]


def diagnosed(rtx: ModuleType, data: bytes) -> int:
    """What TensorRT says against the form of an engine."""

    class Nowhere(rtx.ILogger):  # type: ignore[name-defined,misc]
        def log(self, severity: object, message: str) -> None:
            """It complains of the GPU that is not there."""

    log = Nowhere()
    return int(rtx.Runtime(log).get_engine_validity(data)[1]) & int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_what_is_there_is_not_built_again_unless_it_is_damaged(rtx: ModuleType, tmp_path: Path) -> None:
    key = key_of(rtx, tiny())
    engine = build_engine(rtx, tiny(), key, tmp_path, quiet)
    before = engine.path.stat()
    certified = replace(engine, certificate=Certificate(True, engine.sha256))
    write_sidecar(certified)
    assert build_engine(rtx, tiny(), key, tmp_path, lambda *_: pytest.fail("built again")) == certified
    assert (engine.path.stat().st_ino, engine.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    data = bytearray(engine.path.read_bytes())
    data[len(data) // 2] ^= 1
    engine.path.write_bytes(data)
    with pytest.raises(Failure, match=r"damaged, sha256 is .*rebuild it here with"):
        check_file(engine)
    rebuilt = build_engine(rtx, tiny(), key, tmp_path, quiet)
    assert rebuilt.certificate is None and check_file(rebuilt) != bytes(data)
    sidecar_of(engine.path).write_text("{}")
    assert read_sidecar(sidecar_of(build_engine(rtx, tiny(), key, tmp_path, quiet).path)).key == key


def test_engines_of_other_settings_are_other_files(rtx: ModuleType, tmp_path: Path) -> None:
    key = key_of(rtx, tiny())
    keys = [key, replace(key, sm=("8.9",)), replace(key, profile=(1, 1, 1)), replace(key, graph="0" * 64)]
    assert len({build_engine(rtx, tiny(), k, tmp_path, quiet).path for k in keys}) == len(keys)


@pytest.mark.parametrize(
    ("part", "value", "shown"),
    [("version", "9.9", r"version 1\S+ \(here: 9\.9\)"), ("sm", ("7.5",), r"sm 8\.6 \(here: 7\.5\)")],
)
def test_an_engine_for_something_else_names_the_part(
    rtx: ModuleType, tmp_path: Path, part: str, value: object, shown: str
) -> None:
    engine = build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path, quiet)
    with pytest.raises(Failure, match=f"built for {shown}; rebuild it here with: cfgdiff export"):
        check_key(engine, replace(engine.key, **{part: value}))


def test_an_operator_that_tensorrt_lacks_is_named(
    rtx: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = tiny("Frobnicate")
    with pytest.raises(
        Failure, match=r"TensorRT cannot take node 'second' \(operator Frobnicate\): .*; export without"
    ) as error:
        build_engine(rtx, graph, key_of(rtx, graph), tmp_path, quiet)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())
    with pytest.raises(Failure, match=r"TensorRT cannot read the graph: .*; export the model again"):
        build_engine(rtx, b"no graph", key_of(rtx, graph), tmp_path, quiet)
    assert not any(tmp_path.iterdir()) and "".join(capfd.readouterr()) == ""


def test_a_build_that_fails_says_why(rtx: ModuleType, tmp_path: Path) -> None:
    key = replace(key_of(rtx, tiny()), profile=(4, 2, 1))
    with pytest.raises(
        Failure, match=rf"tensorrt_rtx \S+ cannot build {key.file_name.replace('+', '.')}: .*profile.*; try a smaller"
    ) as error:
        build_engine(rtx, tiny(), key, tmp_path, quiet)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("written", ["", ".json"])  # the engine, its sidecar
def test_a_full_disk_leaves_nothing(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    key, rename = key_of(rtx, tiny()), os.replace

    def full(source: str, target: Path) -> None:
        if target.name == key.file_name + written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = rf"{key.file_name}{written}: cannot be written \(No space left on device\); make room"
    with pytest.raises(Failure, match=message) as error:
        build_engine(rtx, tiny(), key, tmp_path, quiet)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


def test_a_target_that_is_a_file_is_named(rtx: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Failure, match=r"file/.*\.engine: cannot be written \(File exists\)"):
        build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path / "file", quiet)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("at", [0, 30])
def test_ctrl_c_ends_the_build_and_leaves_nothing(
    rtx: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], at: int
) -> None:
    before, steps = signal.getsignal(signal.SIGINT), 0

    def interrupt(*_: object) -> None:
        nonlocal steps
        if steps == at:
            os.kill(os.getpid(), signal.SIGINT)
        steps += 1

    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path, interrupt)
    assert steps == at + 1 and not any(tmp_path.iterdir()) and signal.getsignal(signal.SIGINT) is before
    assert "".join(capfd.readouterr()) == ""


def test_ctrl_c_while_tensorrt_calls_its_logger_is_not_lost(rtx: ModuleType, tmp_path: Path, caplog: Any) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            interrupts.append(record.getMessage())
            if len(interrupts) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    interrupts, handler, log = list[str](), Interrupt(), logging.getLogger("cfgdiff")
    caplog.set_level(logging.DEBUG, "cfgdiff")
    log.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path, quiet)
    finally:
        log.removeHandler(handler)
    assert interrupts and not any(tmp_path.iterdir())


def test_an_error_of_the_progress_is_not_lost(
    rtx: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError("closed")

    with pytest.raises(BrokenPipeError, match="closed"):
        build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path, broken)
    assert not any(tmp_path.iterdir()) and "".join(capfd.readouterr()) == ""


def test_a_thread_builds_too(rtx: ModuleType, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert check_file(pool.submit(build_engine, rtx, tiny(), key_of(rtx, tiny()), tmp_path, quiet).result())


@pytest.mark.filterwarnings(
    "ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"
)  # it has the calls; they do nothing
def test_plain_tensorrt_keeps_its_timings(rtx: ModuleType, tmp_path: Path) -> None:
    key = replace(key_of(rtx, tiny()), module="tensorrt", version="11.0.0")
    build_engine(rtx, tiny(), key, tmp_path / "a", quiet)
    (file,) = (Path(os.environ["XDG_CACHE_HOME"]) / "cfgdiff").iterdir()
    assert file.name == "timing-tensorrt-11.0.0-sm86.cache" and file.stat().st_size > 0
    file.write_bytes(b"damaged")
    build_engine(rtx, tiny(), key, tmp_path / "b", quiet)
    assert file.read_bytes() != b"damaged"
    file.unlink()
    file.mkdir()  # cannot be read, nor written
    assert check_file(build_engine(rtx, tiny(), key, tmp_path / "c", quiet)) and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("stored", "used"), [(b"good", b"good"), (b"damaged", b""), (b"of another GPU", b""), (None, b"")]
)
def test_timings_that_do_not_fit_are_measured_again(tmp_path: Path, stored: bytes | None, used: bytes) -> None:
    class Config:
        def create_timing_cache(self, data: bytes) -> bytes | None:
            return None if data == b"damaged" else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            self.used = cache
            return ignore_mismatch or cache != b"of another GPU"

    config, file = Config(), tmp_path / "timings"
    if stored is not None:
        file.write_bytes(stored)
    _load_timings(config, file)
    assert config.used == used


def test_a_builder_that_cannot_be_had_is_one_line(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def builder(log: object) -> None:
        log.log(rtx.ILogger.ERROR, "CUDA initialization\nfailure with error: 35")  # type: ignore[attr-defined]
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(rtx, "Builder", builder)
    with pytest.raises(
        Failure, match=r"tensorrt_rtx \S+ cannot build .*: CUDA initialization failure with error: 35; try"
    ):
        build_engine(rtx, tiny(), key_of(rtx, tiny()), tmp_path, quiet)
