"""`cfgdiff engines` as a user calls it."""

import subprocess
import sys
from pathlib import Path

ENTRY = "from cfgdiff.cli.main import main; main()"
NO_OPENVINO = "import sys; sys.modules['openvino'] = None; "


def call(code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_every_engine_has_its_line_and_a_star_marks_what_auto_takes() -> None:
    result = call(NO_OPENVINO + ENTRY, "engines")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("    ")]
    assert [line[2:].split()[0] for line in lines] == ["tensorrt", "cuda", "cpu", "openvino"]
    assert sum(line.startswith("* ") for line in lines) == 1
    assert lines[2].split()[-4].startswith("onnxruntime") and lines[2].endswith("works: float32")
    assert lines[3].endswith("does not work here") and "pip install 'cfgdiff[openvino]'" in result.stdout


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    result = call(ENTRY, "engines", tmp_path / "nowhere")
    assert result.returncode == 1 and "no bundle there" in result.stderr and len(result.stderr.splitlines()) == 1
