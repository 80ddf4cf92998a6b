"""What is said of every engine, with and without a GPU."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle, load_bundle, survey
from cfgdiff.runtime.bundle import SpeedRecord
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.processor import Processor
from cfgdiff.runtime.speeds import Speed

Write = Callable[..., Any]


RECORD = SpeedRecord(("avx2", "amx_bf16"), 2, "openvino", "bfloat16", 4.4)


@pytest.fixture
def on_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor has AMX."""
    monkeypatch.setattr(survey, "processor", lambda: Processor("some", frozenset({"avx2", "avx512f", "amx_bf16"})))


def test_every_precision_of_every_engine_is_opened_and_timed(packaged: Bundle, fake_cpu: Any) -> None:
    fake_cpu.kinds["openvino", "bfloat16"] = {"fails": "no bfloat16"}
    found = survey.survey(packaged, threads=2)
    cpu, openvino = found.rows
    assert (cpu.engine, cpu.precisions, cpu.remarks) == ("cpu", ("float32",), ()) and cpu.package.startswith(
        "onnxruntime"
    )
    assert (openvino.precisions, openvino.remarks) == (("float32",), ("no bfloat16",))
    assert [(s.engine, s.precision, s.certified) for s in found.speeds] == [
        ("cpu", "float32", True), ("openvino", "float32", True), ("openvino", "bfloat16", False),
    ]  # fmt: skip
    assert found.taken == ("cpu", "float32")
    opened = len(fake_cpu.opened)
    assert (
        survey.survey(packaged, threads=2).speeds == found.speeds and len(fake_cpu.opened) == opened + 3
    )  # what was timed is kept
    survey.survey(packaged, threads=2, anew=True)
    assert len(fake_cpu.opened) == 2 * opened + 3
    fake_cpu.kinds.clear()
    assert survey.survey(packaged, threads=3).taken is None


def test_records_are_of_certified_engines_in_times_the_reference(on_amx: None) -> None:
    timed = [
        Speed("cpu", "float32", many=0.4, psnr_db=100),
        Speed("openvino", "float32", many=0.5, psnr_db=99),
        Speed("openvino", "bfloat16", many=0.1, psnr_db=45),
        Speed("openvino", "int8", many=0.1, psnr_db=30),
    ]
    here = ("avx2", "avx512f", "amx_bf16")
    expected = [SpeedRecord(here, 2, "openvino", "float32", 0.8), SpeedRecord(here, 2, "openvino", "bfloat16", 4.0)]
    assert survey.records(timed, 2) == expected
    assert survey.records(timed[1:], 2) == [] and survey.records(timed, None)[0].threads >= 1


def test_how_fast_a_missing_engine_was_elsewhere(
    packaged: Bundle, fake_cpu: Any, on_amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def said(*records: SpeedRecord) -> tuple[str, ...]:
        return survey.survey(replace(packaged, speeds=records), 2).rows[1].remarks

    del fake_cpu.kinds["openvino", "float32"], fake_cpu.kinds["openvino", "bfloat16"]
    less = replace(RECORD, instructions=("avx2",), times=9.0)
    assert said(RECORD) == ("not here; pip install it",)  # OpenVINO is installed, and tells itself what is wrong
    monkeypatch.setattr(survey, "package", lambda name: "")
    promise = "openvino bfloat16 was 4.4 times cpu float32 on a processor with amx_bf16 (2 threads); "
    promise += "pip install 'cfgdiff[openvino]'"
    assert said(RECORD, less) == ("not here; pip install it", promise)
    for no_help in (
        replace(RECORD, times=0.9),
        replace(RECORD, instructions=("avx2", "amx_int8")),
        replace(RECORD, engine="cpu"),
    ):
        assert said(no_help) == ("not here; pip install it",)


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is not installed, so that nothing but ONNX Runtime is measured."""
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]


def test_certificates_of_tensorrt_engines(gpu: Any, copied: Path, write_engine: Write, no_openvino: None) -> None:
    good, other = write_engine(), write_engine(passed=None, profile=(1, 1, 1))
    old, failed = write_engine(version="1.4"), write_engine(passed=False, profile=(1, 1, 2))
    found = survey.survey(load_bundle(copied))
    row = found.rows[0]
    assert (row.engine, row.precisions, found.taken) == ("tensorrt", ("float32",), ("tensorrt", "float32"))
    said = "\n".join(row.remarks)
    assert len(row.remarks) == 4 and f"{good.path.name}: certified\n" in said + "\n"
    assert (
        f"{other.path}: not certified; run cfgdiff verify" in said and f"{failed.path}: failed its verification" in said
    )
    assert f"{old.path.name}: certified; {old.path}: built for version 1.4" in said
    assert not gpu.memory and not gpu.streams


def test_a_sidecar_that_cannot_be_read_is_told(copied: Path, no_openvino: None) -> None:
    (copied / "x.engine.json").write_text("{")
    rows = {row.engine: row for row in survey.survey(load_bundle(copied)).rows}
    assert rows["tensorrt"].precisions == () and "not the sidecar of an engine" in rows["tensorrt"].remarks[0]
    assert rows["cpu"].precisions == ("float32",)


def test_what_is_missing_comes_with_the_command_that_brings_it(packaged: Bundle, no_openvino: None) -> None:
    found = survey.survey(packaged)
    rows = {row.engine: row for row in found.rows}
    assert list(rows) == ["tensorrt", "cuda", "cpu", "openvino"] and found.taken
    assert "build one with: cfgdiff export --from-bundle" in rows["tensorrt"].remarks[0]
    for row in rows.values():
        assert row.precisions or "pip install" in row.remarks[0] or row.engine == "tensorrt"


def test_an_engine_that_opens_and_does_not_answer_does_not_work(packaged: Bundle, fake_cpu: Any) -> None:
    opener = fake_cpu.opener("openvino")
    survey.try_out(opener(packaged, "float32", 1, False), packaged)
    fake_cpu.kinds["openvino", "float32"]["noise"] = float("nan")
    with pytest.raises(Failure, match="the float32 variant answers with nan on openvino; export the model again"):
        survey.try_out(opener(packaged, "float32", 1, False), packaged)


def test_tensorrt_that_is_not_installed_comes_with_its_extra(
    packaged: Bundle, fake_cpu: Any, set_openers: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_openers({name: fake_cpu.opener(name) for name in ("tensorrt", "cpu")})
    monkeypatch.setattr(survey, "package", lambda name: "")
    row, _ = survey.survey(packaged, 2).rows
    assert row.precisions == () and len(row.remarks) == 1
    assert row.remarks[0].startswith(
        "TensorRT is not installed; pip install 'cfgdiff[tensorrt]', then build an engine with: cfgdiff"
    )
