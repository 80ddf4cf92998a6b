"""`cfgdiff-run --shard-size` as a user calls it: what it makes, keeps, finds damaged, reports, and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import Formula

from cfgdiff.cli import opening
from cfgdiff.cli.run import main
from cfgdiff.runtime.places import open_place, sha256_of
from cfgdiff.runtime.shards import read_manifests, read_shard

SET = ["--class", "cat,ship", "--n", "11", "--shard-size", "4", "--steps", "1", "--seed", "3"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Call:
    """A function that runs `cfgdiff-run` on an engine of sums: (exit code, standard output, standard error)."""
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: Formula())

    def run(*args: object) -> tuple[int, str, str]:
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            return (int(end.code or 0), *capsys.readouterr())
        raise AssertionError

    return run


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def test_shares_make_the_set_and_a_second_call_nothing(call: Call, tmp_path: Path) -> None:
    assert call(*SET, "--out", tmp_path / "one")[0] == 0
    for share in (["--shards", "2"], ["--shard-of", "1/2"], ["--shards", "0-1,2"]):
        code, _, error = call(*SET, "--out", tmp_path / "many", *share)
        assert code == 0, error
    assert hashes(tmp_path / "many") == hashes(tmp_path / "one") and len(hashes(tmp_path / "one")) == 6
    code, out, error = call(*SET, "--out", tmp_path / "one", "--json")
    report = json.loads(out)
    assert (code, error, report["pictures"]) == (0, "", 0) and report["seconds"] < 60
    assert report["shards"] == {"asked": 3, "kept": 3, "made": 0, "damaged": 0}
    assert (report["n"], report["seed"], report["engine"], report["precision"]) == (11, 3, "formula", "float32")


def test_shards_hold_the_pictures_of_a_run_without_them(call: Call, tmp_path: Path) -> None:
    plain = [arg for arg in SET if arg not in ("--shard-size", "4")]
    assert call(*plain, "--out", tmp_path / "all.npz")[0] == 0
    assert call(*SET, "--out", "memory://bucket/set", "--shard-format", "parquet", "--format", "webp")[0] == 0
    place = open_place("memory://bucket/set")
    shards = [read_shard(place, manifest) for manifest in read_manifests(place)]
    with np.load(tmp_path / "all.npz") as arrays:
        assert np.array_equal(arrays["pictures"], np.concatenate([pictures for pictures, _ in shards]))
        assert np.array_equal(arrays["labels"], np.concatenate([labels for _, labels in shards]))


def test_what_is_damaged_is_named_and_made_anew(call: Call, tmp_path: Path) -> None:
    code, _, error = call(*SET, "--out", tmp_path)
    names = [line.split(": ")[0] for line in error.splitlines()[:3]]
    assert code == 0 and names == [str(tmp_path / f"shard-00000{k}.tar") for k in range(3)]
    assert error.splitlines()[3].startswith("11 pictures in 3 shards in ") and error.endswith(f": {tmp_path}\n")
    before, victim = hashes(tmp_path), tmp_path / "shard-000001.tar"
    (tmp_path / "shard-000002.tar").unlink()
    victim.write_bytes(victim.read_bytes().replace(b"0000000004.png", b"0000000009.png").replace(b"ship", b"shop"))
    code, _, error = call(*SET, "--out", tmp_path, "--check", "size")
    assert code == 0 and f"{tmp_path}/shard-000002.tar: is missing; it will be made anew" in error
    assert "shard-000001" not in error and hashes(tmp_path) != before
    code, _, error = call(*SET, "--out", tmp_path)
    assert code == 0 and hashes(tmp_path) == before
    assert f"{victim}: has another sha256 than in its manifest; it will be made anew" in error
    assert "4 pictures in 1 shard in " in error and "2 were finished" in error


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--out", "memory://x"], 2, "--out: a URL is for sets in shards, found memory://x; add --shard-size"),
        (["--n", 10**8], 2, "--n: expected 1 .. 10000000, found 100000000; for more, add --shard-size PICTURES"),
        (["--shards", "1"], 2, "--shards: is for sets in shards, found no --shard-size; add --shard-size PICTURES"),
        (["--ray", "local"], 2, "--ray: is for sets in shards, found no --shard-size"),
        (["--shard-format", "tar"], 2, "--shard-format: is for sets in shards"),
        (["--shard-size", 4], 2, "--n: is missing; how many pictures has the set"),
        (["--shard-size", 4, "--n", 9, "--out", "a.tar"], 2, "--out: expected a folder or a URL for shards, found"),
        (["--shard-size", 4, "--n", 9, "--shards", "0,3"], 2, "--shards: expected 0 .. 2, found 3; see --n"),
        (["--shard-size", 4, "--n", 9, "--shards", "2-1"], 2, "--shards: expected numbers as in 17,20-39, found '2-1'"),
        (["--shard-size", 4, "--n", 9, "--shards", ""], 2, "--shards: expected numbers as in 17,20-39, found ''"),
        (["--shard-size", 4, "--n", 9, "--shard-of", "2/2"], 2, "--shard-of: expected I/N with I of 0 .. N-1"),
        (["--shard-size", 4, "--n", 9, "--shards", 1, "--shard-of", "0/2"], 2, "--shard-of: names shards as --shards"),
        (["--shard-size", 4, "--n", 9, "--actors", 2], 2, "--actors: are processes on a Ray cluster, found no --ray"),
        (["--shard-size", 4, "--n", 9, "--resume"], 2, "--resume: has no effect with --shard-size, which always"),
        (["--shard-size", 4, "--n", 9, "--stream"], 2, "--stream: has no effect with --shard-size"),
        (["--shard-size", 4, "--n", 9, "--interpolate", "1:2"], 2, "--interpolate: has no effect with --shard-size"),
        (["--shard-size", 1, "--n", 10**9], 2, "--shard-size: expected 1000 or more, for at most 1000000 shards"),
        (["--shard-size", 4, "--n", 9, "--guidance", "nan"], 2, "--guidance: expected finite numbers, found nan"),
        (["--shard-size", 4, "--n", 9, "--out", "none://a"], 1, "none://a: cannot be opened (Protocol not known"),
        (["--shard-size", 4, "--n", 9, "--ray", "127.0.0.1:1"], 1, "--ray: "),
    ],
)  # fmt: skip
def test_mistakes_are_a_line(
    args: list, code: int, expected: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, error = call("--class", "cat", *args)
    line = error.splitlines()[-1]
    assert (found, out) == (code, "") and line.startswith(f"Error: {expected}"), error
    assert list(tmp_path.iterdir()) == []


def test_another_set_in_the_same_place_is_refused(call: Call, tmp_path: Path) -> None:
    assert call(*SET, "--out", tmp_path, "--shards", "1")[0] == 0
    code, _, error = call(*SET, "--out", tmp_path, "--seed", "4", "--steps", "2", "--shards", "0")
    holds = f"Error: --out: {tmp_path} holds pictures made with seed 3 (now 4), steps 1 (now 2); ask for the same, or"
    assert code == 2 and error.splitlines()[-1].startswith(holds)
    code, _, error = call(*SET, "--out", tmp_path, "--n", "7")
    assert code == 2 and f"--n: {tmp_path} holds 8 pictures or more, found 7; ask for as many, or for another" in error


REAL = "from cfgdiff.cli.run import main; main()"


def test_machines_that_share_a_set_compute_in_one_precision(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(bundle: object, engine: str, precision: str, *others: object) -> Formula:
        asked.append((engine, precision, *others[2:]))
        return Formula()

    monkeypatch.setattr(opening, "open_engine", opened)
    assert call(*SET, "--out", tmp_path / "a", "--shard-of", "0/3")[0] == 0
    assert call(*SET, "--out", tmp_path / "a")[0] == 0
    assert call(*SET, "--out", tmp_path / "b")[0] == 0
    assert asked == [("auto", "float32", 1, 1), ("formula", "float32"), ("auto", "auto", 11, 11)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_finished_shards_and_says_how_to_continue(
    number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    args = [
        "--class",
        "all",
        "--n",
        "100000",
        "--shard-size",
        "8",
        "--steps",
        "1",
        "--engine",
        "cpu",
        "--out",
        str(out),
    ]
    with subprocess.Popen([sys.executable, "-c", REAL, *args], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out / "shard-000001.json").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr is not None
        error = process.stderr.read()
    assert process.returncode == (1 if number == signal.SIGINT else 143)
    assert "stopped after " in error and "of 12500 shards; the same command continues" in error
    manifests = read_manifests(open_place(out))
    assert len(manifests) >= 2 and all(sha256_of(out / m.file) == m.sha256 for m in manifests)
    assert not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are POSIX's")
def test_a_full_disk_leaves_no_half_shard(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n" + REAL
    args = [
        "--class",
        "cat",
        "--n",
        "8",
        "--shard-size",
        "4",
        "--steps",
        "1",
        "--engine",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    line = f"Error: --out {tmp_path}/shard-000000.tar: cannot be written (File too large); make room or choose another"
    assert done.returncode == 1 and line.replace("--out ", "") in done.stderr.replace("--out ", ""), done.stderr
    assert os.listdir(tmp_path) == []
