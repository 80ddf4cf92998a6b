"""`cfgdiff serve`: its mistakes in one line, and a server that starts, draws and ends."""

import base64
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.main import main
from cfgdiff.runtime.images import load_picture
from cfgdiff.runtime.server import http

SCHEDULER = Path(http.__file__).with_name("scheduler.py")
CODE, RUN = "from cfgdiff.cli.main import main; main()", "from cfgdiff.cli.run import main; main()"


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """A file with a token."""
    (tmp_path / "token.txt").write_text("secret\n")
    return tmp_path / "token.txt"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--port", "70000"], 2, "--port: expected 0 .. 65535, found 70000"),
        (["--host", "300.1.1.1"], 1, "--host 300.1.1.1 --port 8000: cannot listen there"),
        (["--token-file", "empty"], 2, "--token-file empty: expected one word"),
        (["--token-file", "missing"], 1, "missing: No such file or directory"),
        (["--port", "0", "nothing"], 1, "nothing: no bundle there"),
        (["--port", "0", "cifar10-turbo", "cifar10-turbo"], 2, "MODEL: expected models of different names"),
        (["--port", "0", "--engine", "cup"], 2, "--engine: no engine 'cup'"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SystemExit) as end:
        main(["serve", *args])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert end.value.code == code and message in line


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as end:
        main(["serve", "--port", str(taken.getsockname()[1])])
    assert end.value.code == 1 and "cannot listen there (Address already in use" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "uvicorn is not installed; pip install 'cfgdiff[serve]'" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path, word: Path) -> Iterator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """A server of cifar10-turbo in a process of its own, its address, and the lines that it wrote until then."""
    if not SCHEDULER.is_file():
        pytest.skip("needs the scheduler")
    command = [sys.executable, "-c", CODE, "serve", "cifar10-turbo", "--engine", "cpu", "--port", "0"]
    command += ["--token-file", str(word), "--jobs-dir", str(tmp_path / "jobs"), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    while not (found := re.match(r"(http://127\.0\.0\.1:\d+): serving", lines[-1] if lines else "")):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    yield process, found[1], lines
    process.kill()
    process.wait()
    process.stderr.close()


def test_a_served_picture_is_the_one_of_the_command_line(server: Any, tmp_path: Path) -> None:
    import httpx

    process, url, lines = server
    assert lines[0] == "cifar10-turbo: cpu, float32\n"
    with httpx.Client(base_url=url, headers={"authorization": "Bearer secret"}, timeout=60) as client:
        body = {"prompt": "2 frogs, 1 ship", "seed": 11, "steps": 2}
        data = client.post("/v1/images/generations", json=body).raise_for_status().json()["data"]
        assert client.get("/metrics").text.count('model="cifar10-turbo"') >= 5
        job = client.post("/v1/jobs", json={"class": "frog", "n": 3}).json()
        assert job["status"] == "queued"
    for i, entry in enumerate(data):
        (tmp_path / f"{i}.png").write_bytes(base64.b64decode(entry["b64_json"]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert process.stderr.read() == ""
    again = tmp_path / "again.png"
    command = [sys.executable, "-c", RUN, "--remake", str(tmp_path / "2.png"), "--out", str(again)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = (np.asarray(load_picture(path, "")).astype(int) for path in (tmp_path / "2.png", again))
    assert np.abs(first - second).max() <= 1 and Image.open(again).size == (32, 32)
    assert list((tmp_path / "jobs").glob("*.json"))
