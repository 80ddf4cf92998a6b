"""The engine of a run: for its rows, or as the note of what is there already says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.cli.opening import Wanted, first_note
from cfgdiff.runtime import Bundle, Request, resolve
from cfgdiff.runtime.errors import Failure

ANY = Wanted("auto", "auto", None, False)


def names(found: tuple[Any, str]) -> tuple[str, str, str]:
    return found[0].name, found[0].precision, found[1]


def test_rows_are_counted_with_guidance(packaged: Bundle, fake_cpu: Any) -> None:
    for n, w, expected in ((1, 4.0, "cpu"), (42, 4.0, "openvino"), (41, 1.0, "cpu"), (84, 1.0, "openvino")):
        fake_cpu.opened.clear()
        opened = ANY.open(packaged, resolve(packaged, Request([0] * n, 6, w)))
        assert opened.name == expected, (n, w)
        if n == 1:
            assert fake_cpu.opened == [("cpu", "float32")]  # 12 rows: nothing was measured


def test_a_note_is_followed_where_no_flag_says_otherwise(packaged: Bundle, fake_cpu: Any) -> None:
    noted = packaged, "--remake", "openvino", "bfloat16"
    assert names(ANY.open_as_noted(*noted)) == ("openvino", "bfloat16", "")
    assert names(Wanted("cpu", "float32", None, False).open_as_noted(*noted)) == ("cpu", "float32", "")
    assert names(Wanted("auto", "float32", None, False).open_as_noted(*noted)) == ("openvino", "float32", "")
    assert names(ANY.open_as_noted(packaged, "--remake", "cpu", "float32")) == ("cpu", "float32", "")
    assert len(fake_cpu.opened) == 4  # nothing was measured


def test_where_the_noted_engine_cannot_be_had_another_takes_its_precision(packaged: Bundle, fake_cpu: Any) -> None:
    found = names(ANY.open_as_noted(packaged, "--remake", "cuda", "float32"))
    assert found[:2] == ("cpu", "float32") and "no engine 'cuda'" in found[2]
    fake_cpu.kinds["openvino", "bfloat16"] = {"fails": "OpenVINO is not installed"}
    message = r"^--remake: was drawn by openvino, bfloat16, and no engine here computes in bfloat16 "
    message += r"\(OpenVINO is not installed\); --precision"
    with pytest.raises(Failure, match=message):
        ANY.open_as_noted(packaged, "--remake", "openvino", "bfloat16")
    found = names(Wanted("auto", "float32", None, False).open_as_noted(packaged, "--remake", "tensorrt", "bfloat16"))
    assert found[:2] == ("cpu", "float32")
    with pytest.raises(Failure, match=r"^OpenVINO is not installed$"):  # a named engine is never replaced
        Wanted("openvino", "auto", None, False).open_as_noted(packaged, "--remake", "openvino", "bfloat16")


NO_OPENVINO = "import sys; sys.modules['openvino'] = None; from cfgdiff.cli.run import main; main()"
# An engine that adds a grey level to what ONNX Runtime answers, in the place of OpenVINO.
OTHER = """from dataclasses import replace
from cfgdiff.runtime import engine_ort
from cfgdiff.runtime.engines import ENGINES
class Other(engine_ort.OrtEngine):
    name = "openvino"
    def __init__(self, bundle, precision, threads):
        super().__init__(bundle, "float32", threads)
        self.precision = precision
opener = lambda bundle, precision, threads, uncertified: Other(bundle, precision, threads)
ENGINES["openvino"] = replace(ENGINES["openvino"], open=opener)
from cfgdiff.cli.run import main
main()"""


def call(code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_pictures_are_remade_and_resumed_by_what_drew_them(tmp_path: Path) -> None:
    args = ["--class", "cat", "--n", 3, "--steps", 1, "--batch", 1, "--threads", 1, "--out", tmp_path / "a"]
    assert first_note(tmp_path / "a", "png") is None
    made = call(OTHER, *args, "--engine", "openvino", "--precision", "bfloat16")
    assert made.returncode == 0 and "(openvino, bfloat16)" in made.stderr, made.stderr
    assert first_note(tmp_path / "a", "png") == ("openvino", "bfloat16") and first_note(tmp_path / "a", "webp") is None
    picture, again = tmp_path / "a" / "0001.png", tmp_path / "again.png"
    result = call(OTHER, "--remake", picture, "--out", again, "--threads", 1)
    assert "the same pixels (openvino, bfloat16; 0001.png was drawn by openvino, bfloat16)" in result.stderr
    picture.unlink()
    result = call(OTHER, *args, "--resume")
    assert result.returncode == 0 and picture.is_file() and "(openvino, bfloat16), 2 were there" in result.stderr, (
        result.stderr
    )
    for more, words in (
        ([], "no engine here computes in bfloat16 (OpenVINO is not installed; "),
        (["--resume"], "--resume: was drawn by"),
    ):
        result = call(NO_OPENVINO, *(args if more else ["--remake", picture, "--out", again]), *more)
        assert result.returncode == 1 and words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    result = call(NO_OPENVINO, "--remake", picture, "--out", again, "--precision", "float32")
    assert (
        result.returncode == 0
        and "(cpu, float32; 0001.png was drawn by openvino, bfloat16, which is not available here: OpenVINO is not"
        in result.stderr
    )
