"""Failures become one line and an exit code."""

import click
import pytest

from cfgdiff.cli.errors import run_command
from cfgdiff.runtime.errors import BadInput, Failure


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Failure("a\nb"), 1, "Error: a b"),
        (BadInput("c"), 2, "Error: c"),
        (OSError(28, "No space left on device", "f.png"), 1, "Error: f.png: No space left on device"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "Error: torch is not installed; pip install 'cfgdiff[train]'"),
        (KeyboardInterrupt(), 1, "Aborted!"),
    ],
)
def test_one_line_and_a_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture) -> None:
    @click.command()
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(command)([])
    text = capsys.readouterr().err.strip()
    assert stopped.value.code == code and text.startswith(line) and "\n" not in text
