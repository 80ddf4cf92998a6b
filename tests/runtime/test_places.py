"""Places: a folder, memory:// and a local S3 server behave alike; what is written is whole or absent."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.places import LocalPlace, Place, is_url, open_place, sha256_of, size_of

NEEDS = "needs the dev extra: pip install 'cfgdiff[dev]'"


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A server that speaks S3, with the bucket `bucket`."""
    server = pytest.importorskip("moto.server", reason=NEEDS)
    boto3, fsspec = pytest.importorskip("boto3", reason=NEEDS), pytest.importorskip("fsspec", reason=NEEDS)
    pytest.importorskip("s3fs", reason=NEEDS)
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1"),
                            ("ENDPOINT_URL", f"http://{host}:{port}")):  # fmt: skip
            patch.setenv(f"AWS_{name}", value)
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield
    moto.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place."""
    if request.param == "folder":
        return open_place(tmp_path / "set")
    pytest.importorskip("fsspec", reason=NEEDS)
    if request.param == "s3":
        request.getfixturevalue("s3")
    bucket = "bucket" if request.param == "s3" else "any"
    return open_place(f"{request.param}://{bucket}/{tmp_path.name}/")


def put(place: Place, name: str, *files: bytes) -> None:
    """A file, or of several a folder."""
    with place.staging(name) as path:
        if len(files) == 1:
            path.write_bytes(files[0])
        else:
            path.mkdir()
            for i, data in enumerate(files):
                (path / str(i)).write_bytes(data)


def test_files_and_folders_come_back_and_are_replaced(place: Place) -> None:
    assert place.names() == [] and place.read_all(["a"]) == {} and place.size("a") is None
    put(place, "a", b"old")
    put(place, "f", b"1", b"22", b"333")
    put(place, "a", b"new data")
    put(place, "f", b"4444", b"5")
    place.write("a.json", b"{}")
    assert place.names() == ["a", "a.json", "f"]
    assert (place.size("a"), place.size("f"), place.size("b")) == (8, 5, None)
    assert place.read_all(["a.json", "b", "a"]) == {"a.json": b"{}", "a": b"new data"}
    with place.local("a") as path:
        assert path.read_bytes() == b"new data" and path.name == "a"
    with place.local("f") as path:
        assert [p.read_bytes() for p in sorted(path.iterdir())] == [b"4444", b"5"]
    with pytest.raises(Failure, match=rf"^{place.at('b')}: "), place.local("b"):
        pass


def test_what_fails_leaves_what_was_there(place: Place) -> None:
    put(place, "a", b"old")
    with pytest.raises(ZeroDivisionError), place.staging("a") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert place.names() == ["a"] and place.read_all(["a"]) == {"a": b"old"}


def test_a_bucket_that_does_not_exist_or_refuses_is_a_line(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"^s3://other/set: cannot be read .*bucket does not exist.*; check that the"):
        open_place("s3://other/set").names()
    place = open_place("s3://bucket/refused")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(place._fs, "put_file", refused)  # type: ignore[attr-defined]
    with pytest.raises(Failure, match=r"^s3://bucket/refused/a: cannot be written .*Access Denied.*your credentials"):
        put(place, "a", b"data")
    assert place.names() == []


def test_protocols_without_their_package_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_url(text) for text in ("s3://a/b", "memory://x", "a/b", Path("c:/d"))] == [True, True, False, False]
    pytest.importorskip("fsspec", reason=NEEDS)
    with pytest.raises(Failure, match=r"^none://a: cannot be opened \(Protocol not known: none\); expected a URL"):
        open_place("none://a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(Failure, match=r"^gs://a/b: needs another package .*gcsfs"):
        open_place("gs://a/b")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(Failure, match=r"^s3://a: needs fsspec; pip install 'cfgdiff\[cloud\]'"):
        open_place("s3://a")


def test_a_folder_needs_no_fsspec(tmp_path: Path) -> None:
    code = f"""
import sys
from cfgdiff.runtime.places import open_place
with open_place({str(tmp_path)!r}).staging("a") as path: path.write_bytes(b"x")
assert not {{"fsspec", "pyarrow", "ray"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "a").read_bytes() == b"x", done.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
from cfgdiff.runtime.places import LocalPlace
with LocalPlace(Path(sys.argv[1])).staging("f") as path:
    path.mkdir()
    (path / "half").write_bytes(b"x")
    if sys.argv[2] == "kill": os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    subprocess.run([*command, "kill"])
    (left,) = os.listdir(tmp_path)
    with subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == b"ready\n"
        (held,) = set(os.listdir(tmp_path)) - {left}
        place = LocalPlace(tmp_path)
        place.tidy("g*")
        assert set(os.listdir(tmp_path)) == {left, held}
        place.tidy("f*")
        assert os.listdir(tmp_path) == [held]
        put(place, "f", b"1", b"2")
        other.stdin.close()
        assert other.wait() == 0
    assert os.listdir(tmp_path) == ["f"] and os.listdir(tmp_path / "f") == ["half"]


def test_a_full_disk_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match=rf"^{tmp_path}/a: cannot be written \(No space left on device\); make room"):
        put(LocalPlace(tmp_path), "a", b"data")
    assert os.listdir(tmp_path) == []


def test_sizes_and_hashes_of_what_is_not_there(tmp_path: Path) -> None:
    assert size_of(tmp_path / "a") is None and size_of(tmp_path) == 0
    assert sha256_of(tmp_path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
