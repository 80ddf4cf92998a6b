"""`cfgdiff engines` as a user calls it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cfgdiff.cli.engines import engines
from cfgdiff.runtime import load_bundle, survey
from cfgdiff.runtime.processor import Processor

ENTRY = "from cfgdiff.cli.main import main; main()"
NO_OPENVINO = "import sys; sys.modules['openvino'] = None; "


def call(code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_every_engine_has_its_line_and_a_star_marks_what_auto_takes() -> None:
    result = call(NO_OPENVINO + ENTRY, "engines")
    assert result.returncode == 0, result.stderr
    assert (
        result.stderr.startswith("measuring the engines of this machine, once (")
        and len(result.stderr.splitlines()) == 1
    )
    first, second = (part.splitlines() for part in result.stdout.split("\nOn this CPU"))
    lines = [line for line in first if line and not line.startswith("    ")]
    assert [line[2:].split()[0] for line in lines] == ["tensorrt", "cuda", "cpu", "openvino"]
    assert sum(line.startswith("* ") for line in [*first, *second]) == 1
    assert lines[2].split()[-4].startswith("onnxruntime") and lines[2].endswith("works: float32")
    assert lines[3].endswith("does not work here") and "pip install 'cfgdiff[openvino]'" in result.stdout
    assert second[-1].split()[:2] == ["cpu", "float32"] or second[-1].split()[:3] == ["*", "cpu", "float32"]
    assert call(NO_OPENVINO + ENTRY, "engines").stderr == ""  # it was kept


def shown(*args: object) -> list[list[str]]:
    """The lines of the table, by words."""
    result = CliRunner().invoke(engines, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    lines = result.output.split("\nOn this CPU")[1].splitlines()
    return [line.split() for line in lines[2:] if "stored" not in line]


def test_the_table_has_times_and_verdicts(fake_cpu: Any) -> None:
    fake_cpu.kinds["openvino", "float32"]["mixed"] = 0.5
    heads, *rows = shown()
    assert " ".join(heads) == "engine precision ms at 1 ms at 64 times opens in s certified"
    assert rows[0] == [
        "cpu",
        "float32",
        "9.0",
        "513.0",
        "1.00",
        "0.21",
        "yes:",
        "what",
        "the",
        "others",
        "are",
        "compared",
        "with",
    ]
    assert rows[1][:7] == ["openvino", "float32", "10.0", "514.0", "1.00", "1.01", "no:"] and "contradict" in rows[1]
    assert rows[2][:8] == ["*", "openvino", "bfloat16", "4.0", "130.0", "3.95", "1.01", "yes:"] and rows[2][-2:] == [
        "from",
        "float32's",
    ]


def test_it_is_measured_again_when_asked(fake_cpu: Any) -> None:
    shown("--threads", 2)
    fake_cpu.kinds["cpu", "float32"]["row"] = 0.0001
    assert shown("--threads", 2)[1][2] == "9.0"
    assert shown("--threads", 2, "--measure")[1][:4] == ["*", "cpu", "float32", "1.2"]


def test_speeds_are_stored_and_told_where_openvino_is_missing(
    copied: Path, fake_cpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "processor", lambda: Processor("some", frozenset({"avx2", "amx_bf16", "fpu"})))
    before = json.loads((copied / "bundle.json").read_bytes())
    measured = before.pop("speeds", [])
    shown(copied, "--measure", "--store", "--threads", 2)
    after = json.loads((copied / "bundle.json").read_bytes())
    shared = {"instructions": ["avx2", "amx_bf16"], "threads": 2, "engine": "openvino"}
    assert after.pop("speeds")[len(measured) :] == [
        shared | {"precision": "float32", "times": 1.0},
        shared | {"precision": "bfloat16", "times": 3.95},
    ]
    assert after == before and len(load_bundle(copied).speeds) == len(measured) + 2
    del fake_cpu.kinds["openvino", "float32"], fake_cpu.kinds["openvino", "bfloat16"]
    monkeypatch.setattr(survey, "package", lambda name: "")
    said = CliRunner().invoke(engines, [str(copied), "--threads", "3"]).output
    promise = "openvino bfloat16 was 4.0 times cpu float32 on a processor with amx_bf16 (2 threads)"
    assert f"{promise}; pip install 'cfgdiff[openvino]'" in said


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    result = call(ENTRY, "engines", tmp_path / "nowhere")
    assert result.returncode == 1 and "no bundle there" in result.stderr and len(result.stderr.splitlines()) == 1


def test_info_and_engines_do_not_call_a_bundle_whole_that_cannot_draw(copied: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs ONNX: pip install onnx")
    model, tree = onnx.load(str(copied / "model.onnx")), json.loads((copied / "bundle.json").read_bytes())
    model.graph.node[-1].op_type = "Unknown"
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    tree["variants"]["float32"]["files"]["model.onnx"] = hashlib.sha256(
        (copied / "model.onnx").read_bytes()
    ).hexdigest()
    (copied / "bundle.json").write_text(json.dumps(tree))
    result = call(ENTRY, "info", copied)
    assert result.returncode == 1 and "model.onnx: ONNX Runtime cannot load it" in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    result = call(ENTRY, "engines", copied)
    assert result.returncode == 1 and result.stdout.count("does not work here") == 4 and "works:" not in result.stdout
    assert "Traceback" not in result.stderr and "no engine works here" in result.stderr
