"""Which engine is taken, at which precision, and what is said where none can be."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle, engine_ort, load_bundle, open_engine
from cfgdiff.runtime import engine as engines
from cfgdiff.runtime.engine import precisions
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.sidecar import graph_digest


def refuse(*_: object) -> None:
    raise Failure("no such device")


def test_auto_says_what_it_passed_over(packaged: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engines, "OPENERS", engines.OPENERS | {"cuda": refuse})
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert open_engine(packaged).name == "cpu"
    assert "cuda passed over: no such device" in caplog.text
    assert "tensorrt passed over: no TensorRT engine of precision float16 or float32" in caplog.text
    assert caplog.messages[-1] == "engine cpu, float32" and len(caplog.messages) == 3
    with pytest.raises(Failure, match="no such device"):  # a named engine is never replaced
        open_engine(packaged, "cuda")
    monkeypatch.setattr(engines, "OPENERS", {"cuda": refuse})
    with pytest.raises(Failure, match="no engine works here: cuda: no such device"):
        open_engine(packaged)


def test_unknown_names_list_the_choices(packaged: Bundle) -> None:
    with pytest.raises(BadInput, match="choose from auto, tensorrt, cuda, cpu, openvino; did you mean 'cpu'"):
        open_engine(packaged, "cpuu")
    with pytest.raises(BadInput, match="no 'int4' variant; choose from float32"):
        open_engine(packaged, precision="int4")


def test_bfloat16_is_asked_of_openvino_alone(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def openvino(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> None:
        asked.append((precision, threads))
        refuse()

    monkeypatch.setattr(engines, "OPENERS", {"cuda": refuse, "cpu": engines.OPENERS["cpu"], "openvino": openvino})
    with pytest.raises(Failure, match=r"^no engine works here: openvino: no such device$"):
        open_engine(packaged, precision="bfloat16", threads=3)
    assert asked == [("bfloat16", 3)]
    with pytest.raises(BadInput, match="no 'bfloat16' variant; choose from float32"):
        open_engine(packaged, "cpu", "bfloat16")
    assert precisions("openvino", packaged) == ["float32", "bfloat16"] and precisions("cpu", packaged) == ["float32"]


class FakeCuda:
    """Takes any graph."""

    name, max_batch = "cuda", 8

    def __init__(self, bundle: Bundle, precision: str, threads: int | None) -> None:
        self.precision = precision


@pytest.mark.parametrize(
    ("certificate", "precision", "why"),
    [
        ({"passed": True}, "float16", "float16, the fastest, because it is certified"),
        ({"passed": False}, "float32", "because float16 failed its verification"),
        ({"passed": True, "sha256": "0" * 64}, "float32", "because float16 has no certificate (cfgdiff verify"),
        (None, "float32", "because float16 has no certificate (cfgdiff verify"),
        ("no variant", "float32", "because the bundle has no float16 variant"),
    ],
)
def test_cuda_takes_float16_where_it_is_certified(
    edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    certificate: dict[str, Any] | None, precision: str, why: str,
) -> None:  # fmt: skip
    def add(tree: dict[str, Any]) -> None:
        if certificate != "no variant":
            tree["variants"]["float16"] = tree["variants"]["float32"] | {"precision": "float16", "certificate": certificate}

    bundle = load_bundle(edited(add))
    if isinstance(certificate, dict):
        digest = graph_digest(bundle.variants["float16"])
        bundle.variants["float16"].certificate.update({"sha256": digest} | certificate)  # type: ignore[union-attr]
    monkeypatch.setattr(engine_ort, "CudaEngine", FakeCuda)
    with caplog.at_level(logging.INFO, "cfgdiff"):
        taken = open_engine(bundle)
    assert (taken.name, taken.precision) == ("cuda", precision) and why in caplog.text
    assert open_engine(bundle, "cuda", "float32").precision == "float32"  # as asked


def test_auto_on_a_plain_machine_loads_what_it_takes_and_nothing_else() -> None:
    code = """import json, subprocess, sys
subprocess.Popen = None  # nothing is run
from cfgdiff.runtime import load_bundle, open_engine
before = set(sys.modules)
engine = open_engine(load_bundle())
heavy = {"openvino", "tensorrt", "tensorrt_rtx", "cuda", "onnxruntime"}
print(json.dumps([engine.name, sorted(heavy & before), sorted(heavy & set(sys.modules))]))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name, before, after = json.loads(result.stdout)
    assert before == [] and (after == ["onnxruntime"] if name == "cpu" else name in ("cuda", "tensorrt"))
