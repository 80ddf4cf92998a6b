"""What a TensorRT module says reaches the user as one line; with the real module where it is installed."""

import sys
from pathlib import Path

import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import ANY_DRIVER, BuiltEngine, EngineKey
from cfgdiff.runtime.tensorrt_model import Model, import_module, logger_of

BUILT = BuiltEngine(
    Path("x.engine"), EngineKey("a" * 64, "tensorrt_rtx", "1.7", ("8.6",), ANY_DRIVER, "float32", (1, 2, 4)), "0" * 64
)


def test_a_missing_module_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(Failure, match=r"TensorRT-RTX is not installed; pip install tensorrt-rtx cuda-bindings"):
        import_module(BUILT)


def test_the_real_module_refuses_nonsense_in_one_line() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    assert import_module(BUILT) is module and logger_of(module) is logger_of(module)
    with pytest.raises(
        Failure, match=r"x\.engine: TensorRT-RTX cannot load it \(.+\); rebuild it here with: cfgdiff export"
    ) as error:
        Model(module, b"no engine", BUILT)
    assert "\n" not in str(error.value)
