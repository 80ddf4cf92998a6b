"""Which engine is taken, at which precision, and what is said where none can be."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle, choose, engine_ort, engines, load_bundle, open_engine
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.engines import ENGINES, precisions
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.sidecar import graph_digest


def refuse(*_: object) -> None:
    raise Failure("no such device")


def taken(bundle: Bundle, *args: Any, **settings: Any) -> tuple[str, str]:
    opened = open_engine(bundle, *args, **settings)
    return opened.name, opened.precision


def test_auto_says_what_it_passed_over(
    packaged: Bundle, set_openers: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    set_openers({"tensorrt": ENGINES["tensorrt"].open, "cuda": refuse, "cpu": ENGINES["cpu"].open})
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert open_engine(packaged).name == "cpu"
    assert "cuda passed over: no such device" in caplog.text
    assert "tensorrt passed over: no TensorRT engine of precision float16 or float32" in caplog.text
    assert caplog.messages[-1] == "engine cpu, float32" and len(caplog.messages) == 3
    with pytest.raises(Failure, match=r"^no such device"):  # a named engine is never replaced
        open_engine(packaged, "cuda")
    set_openers({"cuda": refuse})
    with pytest.raises(Failure, match="no engine works here: cuda: no such device"):
        open_engine(packaged)


def test_unknown_names_list_the_choices(packaged: Bundle) -> None:
    with pytest.raises(BadInput, match="choose from auto, tensorrt, cuda, cpu, openvino; did you mean 'cpu'"):
        open_engine(packaged, "cpuu")
    with pytest.raises(BadInput, match="no 'int4' variant; choose from float32"):
        open_engine(packaged, precision="int4")


def test_bfloat16_is_asked_of_openvino_alone(packaged: Bundle, set_openers: Callable) -> None:
    asked: list[tuple] = []

    def openvino(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> None:
        asked.append((precision, threads))
        refuse()

    set_openers({"cuda": refuse, "cpu": ENGINES["cpu"].open, "openvino": openvino})
    with pytest.raises(Failure, match=r"^no engine works here: openvino: no such device$"):
        open_engine(packaged, precision="bfloat16", threads=3)
    assert asked == [("bfloat16", 3)]
    with pytest.raises(BadInput, match="no 'bfloat16' variant; choose from float32"):
        open_engine(packaged, "cpu", "bfloat16")
    assert precisions("openvino", packaged) == ["float32", "bfloat16"] and precisions("cpu", packaged) == ["float32"]


def test_the_fastest_that_is_certified_is_taken(
    packaged: Bundle, fake_cpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert taken(packaged) == ("openvino", "bfloat16")
    assert "cpu, float32 passed over: 0.513 s expected, openvino, bfloat16 0.13 s" in caplog.messages
    fake_cpu.kinds["openvino", "bfloat16"]["noise"] = 0.05
    assert taken(packaged) == ("openvino", "bfloat16")  # as was found before
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert taken(packaged, threads=2) == ("cpu", "float32")
    assert any(
        line.startswith("openvino, bfloat16 passed over: pictures 3") and line.endswith("limit 40")
        for line in caplog.messages
    )
    fake_cpu.kinds["openvino", "float32"]["row"] = 0.003
    assert taken(packaged, threads=3) == ("openvino", "float32")


def test_what_opens_later_is_for_many_rows(packaged: Bundle, fake_cpu: Any) -> None:
    open_engine(packaged)
    assert taken(packaged, rows=12, batch=1) == ("cpu", "float32")  # 0.25 s against 1.0 s
    assert taken(packaged, rows=768) == ("openvino", "bfloat16")  # 3.3 s against 1.8 s
    assert taken(packaged, rows=200) == ("cpu", "float32") and taken(packaged, rows=300) == ("openvino", "bfloat16")


def test_few_rows_are_not_worth_measuring(packaged: Bundle, fake_cpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert taken(packaged, rows=choose.WORTH - 1) == ("cpu", "float32") and fake_cpu.opened == [("cpu", "float32")]
    assert (
        caplog.messages[0] == "cpu, float32 without measuring what is fastest: 499 rows of the network are done sooner"
    )
    assert taken(packaged, "openvino", rows=12) == ("openvino", "float32")
    assert taken(packaged, rows=choose.WORTH) == ("openvino", "bfloat16") and len(fake_cpu.opened) == 6


def test_what_is_named_is_taken(packaged: Bundle, fake_cpu: Any) -> None:
    assert taken(packaged, "openvino") == ("openvino", "bfloat16")
    assert taken(packaged, "openvino", "float32") == ("openvino", "float32") and taken(packaged, "cpu") == (
        "cpu",
        "float32",
    )
    assert taken(packaged, precision="float32") == ("cpu", "float32")
    fake_cpu.kinds["openvino", "bfloat16"]["noise"] = 0.05
    assert taken(packaged, "openvino", threads=2) == ("openvino", "float32")
    assert taken(packaged, precision="bfloat16", threads=2) == ("openvino", "bfloat16")  # by name, certified or not


def test_int8_is_taken_by_name_from_the_faster_engine(packaged: Bundle, fake_cpu: Any) -> None:
    bundle = dataclasses.replace(packaged, variants=packaged.variants | {"int8": packaged.variants["float32"]})
    for name, row in (("cpu", 0.0005), ("openvino", 0.0004)):
        fake_cpu.kinds[name, "int8"] = {"opened": 0.2, "call": 0, "row": row, "noise": 0.05}
    assert taken(bundle) == ("openvino", "bfloat16") and taken(bundle, precision="int8") == ("openvino", "int8")
    for name in ("cpu", "openvino"):
        fake_cpu.kinds[name, "int8"]["noise"] = 1e-3
    fake_cpu.kinds["openvino", "int8"]["mixed"] = 0.5
    assert taken(bundle, threads=1) == ("cpu", "int8")  # its certificate says that its pictures are float32's
    assert taken(bundle, precision="int8", threads=1) == ("cpu", "int8")  # OpenVINO's answers are wrong


def test_the_next_is_taken_where_the_fastest_no_longer_opens(
    packaged: Bundle, fake_cpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    open_engine(packaged)
    fake_cpu.kinds["openvino", "bfloat16"] = {"fails": "a library is missing"}
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert taken(packaged) == ("cpu", "float32")
    assert "engine openvino passed over: a library is missing" in caplog.messages
    assert taken(packaged, "openvino") == ("openvino", "float32")
    fake_cpu.kinds.clear()
    with pytest.raises(Failure, match=r"^no engine works here: openvino: not here; .*; cpu: not here; "):
        open_engine(packaged)


def test_where_only_one_is_installed_nothing_is_measured(
    packaged: Bundle, fake_cpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "util", type("None", (), {"find_spec": lambda name: None}))
    assert taken(packaged) == ("cpu", "float32") and fake_cpu.opened == [("cpu", "float32")]


class FakeCuda:
    """Takes any graph."""

    name, max_batch = "cuda", 8

    def __init__(self, bundle: Bundle, precision: str, threads: int | None) -> None:
        self.precision = precision


@pytest.mark.parametrize(
    ("certificate", "precision", "why"),
    [
        (Certificate(True), "float16", "float16, the fastest, because it is certified"),
        (Certificate(False), "float32", "because float16 failed its verification"),
        (Certificate(True, "0" * 64), "float32", "because float16 has no certificate (cfgdiff verify"),
        (None, "float32", "because float16 has no certificate (cfgdiff verify"),
        ("no variant", "float32", "because the bundle has no float16 variant"),
    ],
)
def test_cuda_takes_float16_where_it_is_certified(
    edited: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    certificate: Certificate | str | None,
    precision: str,
    why: str,
) -> None:
    def add(tree: dict[str, Any]) -> None:
        if certificate != "no variant":
            tree["variants"]["float16"] = tree["variants"]["float32"] | {"precision": "float16", "certificate": None}

    bundle = load_bundle(edited(add))
    if isinstance(certificate, Certificate):
        variant = bundle.variants["float16"]
        signed = dataclasses.replace(certificate, sha256=certificate.sha256 or graph_digest(variant))
        bundle.variants["float16"] = dataclasses.replace(variant, certificate=signed)
    monkeypatch.setattr(engine_ort, "CudaEngine", FakeCuda)
    with caplog.at_level(logging.INFO, "cfgdiff"):
        taken = open_engine(bundle)
    assert (taken.name, taken.precision) == ("cuda", precision) and why in caplog.text
    assert open_engine(bundle, "cuda", "float32").precision == "float32"  # as asked


def test_auto_on_a_plain_machine_loads_what_it_takes_and_nothing_else() -> None:
    code = """import json, subprocess, sys
subprocess.Popen = None  # nothing is run
sys.modules["openvino"] = None  # a plain install
from cfgdiff.runtime import load_bundle, open_engine
before = set(sys.modules)
engine = open_engine(load_bundle())
heavy = {"tensorrt", "tensorrt_rtx", "cuda", "onnxruntime"}
print(json.dumps([engine.name, sorted(heavy & before), sorted(heavy & set(sys.modules))]))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name, before, after = json.loads(result.stdout)
    assert before == [] and (after == ["onnxruntime"] if name == "cpu" else name in ("cuda", "tensorrt"))
