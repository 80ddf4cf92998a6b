"""`cfgdiff export --triton` as a user runs it: with what a plain install brings, and with mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfgdiff.cli.main import main

PLAIN = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; from cfgdiff.cli.main import main; main()"


def test_a_plain_install_writes_a_repository(tmp_path: Path) -> None:
    args = ["export", "--from-bundle", "cifar10-turbo", "--triton", str(tmp_path / "models")]
    done = subprocess.run([sys.executable, "-c", PLAIN, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, then = done.stderr.splitlines()
    assert first == f"model repository {tmp_path / 'models'}: cifar10-turbo, which draws, and cifar10-turbo_network"
    assert then.endswith(f"tritonserver --model-repository={tmp_path / 'models'}")
    assert sorted(os.listdir(tmp_path / "models")) == ["cifar10-turbo", "cifar10-turbo_network"]
    again = subprocess.run([sys.executable, "-c", PLAIN, *args], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(f"Error: --triton {tmp_path / 'models'}: exists and is not empty; choose another")


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--from-bundle", "nowhere", "--triton", "T"], 1, "nowhere: no bundle there"),
        (["runs/smoke", "--triton", "T"], 2, "--triton: expected --from-bundle [BUNDLE]; export a checkpoint first"),
        (["R", "--from-bundle", "--triton", "T"], 2, "--triton: expected --from-bundle [BUNDLE]; export a checkpoint"),
        (["--triton", "T"], 2, "--triton: expected --from-bundle [BUNDLE]; export a checkpoint first"),
        (["--from-bundle", "--triton", "T", "--steps", "4"], 2, "--steps: changes a bundle, found --triton"),
        (["--from-bundle", "--triton", "T", "--out", "O"], 2, "--out: changes a bundle, found --triton"),
        (["--from-bundle", "--triton", "T", "--force"], 2, "--force: changes a bundle, found --triton"),
        (["--from-bundle", "--triton", "T", "--fp16", "--int8"], 2, "--triton: expected one of --fp16 and --int8"),
        (["--from-bundle", "--triton", "T", "--int8"], 1, "cifar10-small: has no int8 variant, only float32"),
        (["--from-bundle", "--triton", "T", "--tensorrt"], 1, "no float32 engine of TensorRT for batches from 1 on"),
    ],
)
def test_every_mistake_is_one_line_and_writes_nothing(
    args: list[str], code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["export", *args])
    said = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert end.value.code == code and len(said) == 1 and expected in said[0], said
    assert os.listdir(tmp_path) == []
