"""`cfgdiff fit-steps` as a user calls it, without onnx and torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfgdiff.cli.fit import fit_steps
from cfgdiff.runtime.errors import Failure

ENTRY = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; from cfgdiff.cli.main import main; main()"


def call(*args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", ENTRY, *map(str, args)], capture_output=True, text=True)


def test_fitted_steps_are_stored_and_then_taken(copied: Path, tmp_path: Path) -> None:
    result = call(
        "fit-steps",
        copied,
        "--steps",
        "2,3",
        "--n",
        8,
        "--teacher-steps",
        8,
        "--guidance",
        1,
        "--guidance-interval",
        "0.1,9",
    )
    assert result.returncode == 0, result.stderr
    errors = {
        int(line.split()[0]): [float(part.strip(",")) for part in line.split()[2:]]
        for line in result.stdout.splitlines()[1:]
    }
    assert all(fitted < plain / 2 for fitted, plain in errors.values()) and list(errors) == [2, 3]
    stored = json.loads((copied / "bundle.json").read_text())["fitted"]
    assert stored["2"]["guidance"] == 1 and stored["2"]["interval"] == [0.1, 9] and len(stored["3"]["timesteps"]) == 4
    run = [
        sys.executable,
        "-c",
        "from cfgdiff.cli.run import main; main()",
        "--class",
        "cat",
        "--n",
        "2",
        "--json",
        "--model",
        str(copied),
    ]
    for guidance, sampler in (("1", "fitted"), ("2", "dpmpp-2m")):
        done = subprocess.run(
            [
                *run,
                "--steps",
                "3",
                "--guidance",
                guidance,
                "--guidance-interval",
                "0.1,9",
                "--out",
                str(tmp_path / "a.png"),
            ],
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stdout)["sampler"] == sampler, done.stderr
    assert "fitted steps" in call("info", copied).stdout


def test_a_bundle_that_cannot_be_written_is_said_before_the_work(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write where it is told not to
    monkeypatch.setattr("cfgdiff.runtime.open_engine", None)
    with pytest.raises(Failure, match="cannot be written"):
        fit_steps.main([str(copied)], standalone_mode=False)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--steps", "4,x"], "--steps: expected N[,N...] as in 4,6,8,10, found '4,x'"),
        (["--steps", "0"], "--steps: expected numbers from 1 to less than --teacher-steps 60, found 0"),
        (["--steps", "4,70"], "--steps: expected numbers from 1 to less than --teacher-steps 60, found 4, 70"),
        (["--guidance", "nan", "--n", 8], "--guidance: expected finite numbers"),
        (["--guidance-interval", "3,1", "--n", 8], "--guidance-interval: expected 0 <= LO < HI, found 3.0,1.0"),
    ],
)
def test_a_mistake_is_one_line(copied: Path, args: list, expected: str) -> None:
    before = (copied / "bundle.json").read_bytes()
    result = call("fit-steps", copied, *args)
    assert result.returncode == 2 and expected in result.stderr and "Traceback" not in result.stderr
    assert (copied / "bundle.json").read_bytes() == before
