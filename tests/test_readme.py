"""Every command and the library example of the README, run in order as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^    ((?:cfgdiff|cfgdiff-run) .+)$", README, re.MULTILINE)
ENTRY = {"cfgdiff": "from cfgdiff.cli.main import main; main()", "cfgdiff-run": "from cfgdiff.cli.run import main; main()"}


@pytest.fixture
def data(write_cifar: Callable[..., np.ndarray], tmp_path: Path) -> Path:
    """A CIFAR-10 of 200 random pictures."""
    write_cifar(tmp_path / "data", 40)
    return tmp_path / "data"


def test_the_commands_do_what_they_say(data: Path, tmp_path: Path) -> None:
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        name, *args = shlex.split(command.replace("DATA", str(data)))
        result = subprocess.run([sys.executable, "-c", ENTRY[name], *args], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert result.returncode == 0, f"{command}: {result.stderr}"
    assert len(list((tmp_path / "frogs").glob("0*.png"))) == 64 and (tmp_path / "frogs" / "grid.png").is_file()
    assert (tmp_path / "smoke.png").is_file() and (tmp_path / "exported" / "smoke" / "bundle.json").is_file()


def test_the_library_example_runs(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.+?)```", README, re.DOTALL)[0], {})
    assert capsys.readouterr().out == "0 (8, 32, 32, 3)\n" and (tmp_path / "frog.png").is_file()


def test_the_test_command_is_the_one_of_ci() -> None:
    assert "python -m pytest -q" in README
    assert 'python" -m pytest -q' in (Path(__file__).parents[1] / ".ci" / "run").read_text()


def test_pictures_shown_exist() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert shown and all((Path(__file__).parents[1] / path).is_file() for path in shown)
