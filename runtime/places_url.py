"""A set of shards at a URL: in a bucket, or what else fsspec opens. A shard is written to a temporary file, then put.

Object stores show an object when all of it has arrived; elsewhere, what was interrupted has no manifest yet.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Failure
from .places import files_in


class UrlPlace:
    """See `Place`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            import fsspec
        except ImportError:
            raise Failure(f"{url}: needs fsspec; pip install 'cfgdiff[cloud]', or take a folder") from None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self._url)
        except ImportError as error:
            raise Failure(
                f"{url}: needs another package ({error}); install it, as pip install s3fs for s3://"
            ) from None
        except Exception as error:  # each protocol has its own
            raise Failure(
                f"{url}: cannot be opened ({_first_line(error)}); expected a URL as s3://bucket/set"
            ) from None

    def __str__(self) -> str:
        return self._url

    def at(self, name: str) -> str:
        """See `Place`."""
        return f"{self._url}/{name}"

    def names(self) -> list[str]:
        """See `Place`. Raises `Failure` for a bucket that does not exist."""
        bucket = self._root.split("/")[0]
        with self._explained(self._url, "read"):
            self._fs.invalidate_cache()
            try:
                return sorted(
                    str(name).rstrip("/").rsplit("/", 1)[-1] for name in self._fs.ls(self._root, detail=False)
                )
            except FileNotFoundError:
                if bucket and not self._fs.exists(bucket):
                    raise
                return []

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """See `Place`."""
        paths = {self._path(name): name for name in names}
        contents = {}
        with self._explained(self._url, "read"):
            answers = self._fs.cat(list(paths), on_error="return") if paths else {}
            for path, answer in answers.items():
                if isinstance(answer, bytes):
                    contents[paths[path]] = answer
                elif not isinstance(answer, FileNotFoundError):
                    raise answer
        return contents

    def size(self, name: str) -> int | None:
        """See `Place`."""
        with self._explained(self.at(name), "read"):
            try:
                if self._fs.isdir(self._path(name)):
                    return sum(entry["size"] for entry in self._fs.find(self._path(name), detail=True).values())
                return int(self._fs.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Place`."""
        with tempfile.TemporaryDirectory(prefix="cfgdiff-") as folder:
            path = Path(folder) / name
            with self._explained(self.at(name), "read"):
                if self._fs.isdir(self._path(name)):
                    remote = sorted(self._fs.find(self._path(name)))
                    path.mkdir()
                    self._fs.get(remote, [str(path / file.rsplit("/", 1)[-1]) for file in remote])
                else:
                    self._fs.get_file(self._path(name), str(path))
            yield path

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """See `Place`."""
        with tempfile.TemporaryDirectory(prefix="cfgdiff-") as folder:
            path = Path(folder) / name
            yield path
            with self._explained(self.at(name), "written"):
                self._fs.makedirs(self._root, exist_ok=True)
                if path.is_dir():
                    self._replace_folder(path, self._path(name))
                else:
                    self._fs.put_file(str(path), self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        with self._explained(self.at(name), "written"):
            self._fs.pipe_file(self._path(name), data)

    def tidy(self, name: str) -> None:
        """See `Place`: nothing half-written has a name here."""

    def _replace_folder(self, path: Path, target: str) -> None:
        if self._fs.exists(target):
            self._fs.rm(target, recursive=True)
        self._fs.makedirs(target, exist_ok=True)
        files = files_in(path)
        self._fs.put([str(file) for file in files], [f"{target}/{file.name}" for file in files])

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, where: str, done: str) -> Iterator[None]:
        """What the store refuses, as `Failure`."""
        try:
            yield
        except Failure:
            raise
        except Exception as error:  # each store has its own
            check = "check that the bucket exists, and that your credentials allow it"
            raise Failure(f"{where}: cannot be {done} ({_first_line(error)}); {check}") from None


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
