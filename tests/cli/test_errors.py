"""Failures become one line and an exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "Error: torch is not installed; pip install 'cfgdiff[train]'",
        ),
        (click.ClickException("--n: expected a number, found 'a\nb'"), 1, "Error: --n: expected a number, found 'a b'"),
        (Failure("a\udcff.png: is damaged"), 1, "Error: a?.png: is damaged"),
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


@click.command()
@click.option("--sampler")
@click.option("--guidance-interval", "interval")
@click.option("--from", "source")
@click.option("-v", "--verbose", is_flag=True)
@click.option("--out", type=click.Path(path_type=Path))
@click.argument("place", required=False, type=click.Path(path_type=Path))
def drawing(**flags: object) -> None:
    raise BadInput(str(flags["sampler"]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("interval: expected 0 <= LO < HI, found 3,1", "--guidance-interval: expected 0 <= LO < HI, found 3,1"),
        ("rescale: leave it out, or set `sampler` or `steps`", "rescale: leave it out, or set --sampler or `steps`"),
        ("edit.picture: expected uint8", "--from: expected uint8"),
        ("verbose: expected nothing", "--verbose: expected nothing"),
        ("a/b.png: cannot be written", "--out a/b.png: cannot be written"),
        ("a/b.png: damaged, or leave out `sampler`", "--out a/b.png: damaged, or leave out --sampler"),
        ("a/b.png/x: is damaged", "a/b.png/x: is damaged"),
        ("data/bundle: has no interval: why", "data/bundle: has no interval: why"),
        ("sampler is text, found at place: 3", "sampler is text, found at place: 3"),
    ],
)
def test_parameters_and_places_become_the_flags_that_the_user_has(
    text: str, line: str, capsys: pytest.CaptureFixture
) -> None:
    group = click.Group(commands={"draw": drawing})
    for words, command in ((["draw"], group), ([], drawing)):
        with pytest.raises(SystemExit) as stopped:
            run_command(command)([*words, "--sampler", text, "--out", "a/b.png", "data/bundle"])
        assert stopped.value.code == 2 and capsys.readouterr().err == f"Error: {line}\n"


TERMINATED = """import os, sys, time
from pathlib import Path
import click
from cfgdiff.cli.errors import run_command
from cfgdiff.runtime.files import partial_file

@click.command()
def command():
    with partial_file(Path(sys.argv[1])) as file:
        file.write(b"x" * 99_999)
        os.kill(os.getpid(), 15)
        time.sleep(60)

run_command(command)([])
"""


def test_sigterm_leaves_no_half_file(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", TERMINATED, str(tmp_path / "a.npz")], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (143, "") and not list(tmp_path.iterdir())


def test_a_command_leaves_sigterm_to_whoever_handles_it() -> None:
    @click.command()
    def command() -> None:
        pass

    received = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        for _ in range(2):
            with pytest.raises(SystemExit) as stopped:
                run_command(command)([])
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.code == 0 and received == [15, 15]
    finally:
        signal.signal(signal.SIGTERM, before)
