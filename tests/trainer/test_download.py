"""A download from a server of our own: checked, unpacked, continued where it stopped; failures are one line."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.download import fetch_cifar10


class Server:
    """Serves one file with byte ranges; `asked` are the ranges, `cut` ends the first answer early."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked, self.cut = content, list[str | None](), 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                if first >= len(server.content):
                    self.send_error(416)
                    return
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(server.content) - first))
                self.end_headers()
                end, server.cut = server.cut or len(server.content), 0
                self.wfile.write(server.content[first:end])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/cifar.tar.gz"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content).hexdigest()


@pytest.fixture
def server(write_cifar: Callable[..., np.ndarray], tmp_path: Path) -> Iterator[Server]:
    """A server of a small CIFAR-10."""
    write_cifar(tmp_path / "made", n=40)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    running = Server(packed.getvalue())
    yield running
    running.close()


def test_it_is_fetched_once_and_read(server: Server, tmp_path: Path) -> None:
    options = {"url": server.url, "md5": server.md5}
    for _ in range(2):
        data = load_data(Path("cifar10"), 32, options=options)
    np.testing.assert_array_equal(data.pictures, load_data(tmp_path / "made", 32).pictures)
    assert server.asked == [None]
    assert sorted(p.name for p in cache_folder().iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 70_000
    with pytest.raises(Failure, match="try again to continue"):
        fetch_cifar10(tmp_path / "cache", server.url, server.md5)
    assert fetch_cifar10(tmp_path / "cache", server.url, server.md5).is_dir()
    assert server.asked == [None, "bytes=70000-"]


def test_a_download_that_lacks_nothing_any_more_is_unpacked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cifar-10-python.tar.partial").write_bytes(server.content)
    assert (fetch_cifar10(tmp_path / "cache", server.url, server.md5) / "batches.meta").is_file()


def test_another_archive_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=rf"has md5 {server.md5}, expected 0000"):
        fetch_cifar10(tmp_path / "cache", server.url, "0000")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"cannot download http://127.0.0.1:9/x .*; try again") as error:
        fetch_cifar10(tmp_path / "cache", "http://127.0.0.1:9/x")
    assert "\n" not in str(error.value)


def test_an_archive_that_cannot_be_unpacked_leaves_nothing_half(tmp_path: Path) -> None:
    broken = Server(b"no archive" * 100)
    with pytest.raises(Failure, match="cannot be unpacked"):
        fetch_cifar10(tmp_path / "cache", broken.url, broken.md5)
    broken.close()
    assert not (tmp_path / "cache" / "cifar-10-batches-py").exists()
