"""`cfgdiff bench` from end to end on a small model; mistakes are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.cli.bench import bench
from cfgdiff.cli.main import group
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure


def test_everything_is_measured_and_written(small_bundle: Bundle, tmp_path: Path) -> None:
    code = """import sys
sys.modules["openvino"] = None
from cfgdiff.cli.main import main
main()"""
    args = [
        "bench",
        str(small_bundle.path),
        "--quick",
        "--rounds",
        "1",
        "--steps",
        "2",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, encoding="utf-8", env=env
    )
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert made.stdout.strip() == (tmp_path / "out" / "bench.md").read_text(encoding="utf-8").strip()
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    loops = [row["loop"] for row in found["peers"] if row["B"] == 64]
    assert loops == [
        "cfgdiff, cpu float32",
        "cfgdiff, cpu float16",
        "cfgdiff, cpu int8",
        "two passes a step, cpu float32",
    ]
    assert any("OpenVINO is not installed" in reason for reason in found["skipped"])
    assert any("does not say which network it is; give --checkpoint RUN" in reason for reason in found["skipped"])
    user = found["lead"][0]["loop"]  # whichever was faster: both may be certified
    assert user in ("cfgdiff, cpu float32", "cfgdiff, cpu int8")
    assert [(row["B"], row["loop"], row["diffusers"]) for row in found["lead"]] == [(1, user, None), (64, user, None)]
    taken = user.removeprefix("cfgdiff, ")
    assert made.stdout.splitlines()[2].startswith(f"* 1 picture at a time: --engine auto takes {taken} and draws ")
    assert {(row["B"], row["G"]) for row in found["engines"]} == {(1, 0), (1, 1), (8, 0), (8, 8), (64, 0), (64, 64)}
    assert found["paper"]["times"] > 10 and [row["call"] for row in found["shell"]] == [
        "cfgdiff-run --n 1",
        "cfgdiff-run --n 64",
    ]
    assert "`cfgdiff bench " in made.stdout and str(found["threads"]) == "1"


def test_mistakes_are_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for args, message in (
        (["absent"], "no bundle there"),
        (["--out", str(tmp_path / "file" / "out")], "--out: .*cannot be made"),
    ):
        made = CliRunner().invoke(bench, args)
        assert isinstance(made.exception, Failure)
        with pytest.raises(Failure, match=message):
            raise made.exception
    assert CliRunner().invoke(bench, ["--rounds", "0"]).exit_code == 2


def test_a_subcommand_is_called_by_its_name_and_anything_else_is_a_bundle() -> None:
    shown = CliRunner().invoke(bench, ["--help"]).output
    assert "[BUNDLE] | COMMAND [ARGS]..." in shown and all(
        f"\n  {name} " in shown for name in ("calls", "gpu", "samplers", "serve", "training")
    )
    result = CliRunner().invoke(group, ["bench", "samplers", "--help"])
    assert (
        result.exit_code == 0
        and "bench samplers [OPTIONS] [BUNDLE]\n" in result.output
        and "--teacher-steps" in result.output
    )
    for args in (["sampler", "--quick"], ["--quick", "./samplers"]):
        with pytest.raises(Failure, match=r"sampler.*no bundle there"):
            CliRunner().invoke(bench, args, catch_exceptions=False)
    assert CliRunner().invoke(bench, ["a", "b"]).exit_code == 2
