"""CIFAR-10 from its authors' server: downloaded once, checked, unpacked atomically.

torchvision's downloader does less: it cannot continue an interrupted download, writes the archive under its final name,
has no timeout, and falls back from https to http.
"""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from cfgdiff.runtime.errors import Failure

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"


def fetch_cifar10(folder: Path, url: str = URL, md5: str = MD5) -> Path:
    """The folder cifar-10-batches-py in `folder`, downloaded and unpacked where it is not there yet.

    An interrupted download is continued. Raises `Failure` for a network that fails or an archive of another md5.
    """
    target = folder / "cifar-10-batches-py"
    if (target / "batches.meta").is_file():
        return target
    archive, unpacked = folder / "cifar-10-python.tar.gz", folder / ".unpacked.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not archive.is_file():
            _download(url, md5, archive)
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (unpacked / target.name).rename(target)
        shutil.rmtree(unpacked)
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise Failure(f"{archive}: cannot be unpacked ({error}); make room or remove it, and try again") from None
    return target


def _download(url: str, md5: str, archive: Path) -> None:
    from tqdm import tqdm

    partial = archive.with_suffix(".partial")
    have = partial.stat().st_size if partial.is_file() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=30) as response:
            have = have if response.status == 206 else 0
            total = have + int(response.headers.get("Content-Length", 0))
            with (
                partial.open("ab" if have else "wb") as file,
                tqdm(
                    total=total or None, initial=have, unit="B", unit_scale=True, desc="CIFAR-10", disable=None
                ) as bar,
            ):
                while chunk := response.read(1 << 16):
                    have += file.write(chunk)
                    bar.update(len(chunk))
        if have < total:
            raise ConnectionError(f"it ended after {have} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is missing any more
            raise _unreachable(url, f"HTTP {error.code}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise _unreachable(url, str(getattr(error, "reason", error))) from None
    digest = hashlib.md5(partial.read_bytes(), usedforsecurity=False).hexdigest()  # 170 MB
    if digest != md5:
        partial.unlink()
        raise Failure(f"{url}: has md5 {digest}, expected {md5}; try again, or check the address")
    partial.rename(archive)


def _unreachable(url: str, reason: str) -> Failure:
    own = "or unpack the archive (python version) yourself and give its folder"
    return Failure(f"cifar10: cannot download {url} ({reason}); try again to continue where it stopped, {own}")
