"""`cfgdiff serve`: its mistakes in one line, and a server that starts, draws and ends."""

import base64
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.cli.main import main
from cfgdiff.cli.serve import _names
from cfgdiff.runtime.images import load_picture

CODE, RUN = "from cfgdiff.cli.main import main; main()", "from cfgdiff.cli.run import main; main()"


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


@pytest.mark.parametrize(
    ("host", "more", "names"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.2", ("box.local",), {"localhost", "127.0.0.1", "[::1]", "127.0.0.2", "box.local"}),
        ("::1", (), {"localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0", (), None),
        ("0.0.0.0", ("a.example",), {"a.example"}),
    ],
)
def test_a_local_server_has_local_names(host: str, more: tuple[str, ...], names: set[str] | None) -> None:
    found = _names(host, more)
    assert (None if found is None else set(found)) == names


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Any, list[str]]]:
    """A server of cifar10-turbo in a process of its own, a client of it, and the lines that it wrote until then."""
    import httpx

    (tmp_path / "token.txt").write_text("secret\n")
    command = [
        sys.executable,
        "-c",
        CODE,
        "serve",
        "cifar10-turbo",
        "--engine",
        "cpu",
        "--port",
        "0",
        "--threads",
        "1",
        "--rows",
        "16",
    ]
    command += ["--token-file", str(tmp_path / "token.txt"), "--jobs-dir", str(tmp_path / "jobs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines: list[str] = []
            assert process.stderr is not None
            while not (found := re.match(r"(http://127\.0\.0\.1:\d+): serving", lines[-1] if lines else "")):
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            with httpx.Client(base_url=found[1], headers={"authorization": "Bearer secret"}, timeout=60) as client:
                yield process, client, lines
        finally:
            process.kill()


def test_kill_9_a_restart_and_sigterm_under_load(tmp_path: Path) -> None:
    """A job continues where it was killed; SIGTERM finishes what was asked for; pictures are the command line's."""
    with started(tmp_path) as (process, client, lines):
        assert lines[0] == "cifar10-turbo: cpu, float32\n"
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        job = client.post("/v1/jobs", json={"class": "frog", "n": 600, "steps": 1, "seed": 5}).json()["id"]
        while client.get(f"/v1/jobs/{job}").json()["done"] < 256:
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "jobs" / f"{job}.tar").exists()
    with started(tmp_path) as (process, client, _):
        done = [0]
        while (state := client.get(f"/v1/jobs/{job}").json())["status"] != "done":
            done.append(state["done"])
            time.sleep(0.01)
        assert done == sorted(done) and next(filter(None, done), 600) >= 256
        data = _sigterm_under_load(process, client)
    with tarfile.open(tmp_path / "jobs" / f"{job}.tar") as archive:
        assert archive.getnames()[::3] == [f"{i:06d}.png" for i in range(600)]
    _check_remake(tmp_path, base64.b64decode(data[15]["b64_json"]))


def _sigterm_under_load(process: "subprocess.Popen[str]", client: Any) -> list[dict[str, Any]]:
    """The pictures of one of the requests that were there when the signal came."""
    with ThreadPoolExecutor(8) as pool:
        body = {"prompt": "frog", "n": 16, "steps": 4}
        answers = [pool.submit(client.post, "/v1/images/generations", json=body) for _ in range(8)]
        while 'cfgdiff_jobs{model="cifar10-turbo"} 8.0' not in client.get("/metrics").text:
            assert process.poll() is None and not all(answer.done() for answer in answers)
        process.send_signal(signal.SIGTERM)
        pictures = [answer.result().raise_for_status().json()["data"] for answer in answers]
    assert [len(data) for data in pictures] == [16] * 8
    assert process.wait(30) == 128 + signal.SIGTERM and process.stderr.read() == ""  # type: ignore[union-attr]
    return list(pictures[0])


def _check_remake(folder: Path, png: bytes) -> None:
    """The command line draws a served picture again from its note."""
    (folder / "served.png").write_bytes(png)
    command = [sys.executable, "-c", RUN, "--remake", "served.png", "--out", "again.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr
    first, second = (np.asarray(load_picture(folder / name, name)).astype(int) for name in ("served.png", "again.png"))
    assert first.shape == (32, 32, 3) and np.abs(first - second).max() <= 1
