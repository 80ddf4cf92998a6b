"""Which .tar shards a path or URL names, and the order in which a run sees their pictures. It reads no pictures."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfgdiff.runtime.places import Place, open_place

SUFFIX = ".tar"
URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # as pathlib has folded it: s3:/bucket/set
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Shards(NamedTuple):
    """Where shards lie, and their names, sorted."""

    place: Place
    names: list[str]


def as_url(path: Path) -> str | None:
    """The URL that a path was made of; None where it was none."""
    url = URL.fullmatch(path.as_posix())
    return f"{url[1]}://{url[2]}" if url else None


def find_shards(path: Path) -> Shards | None:
    """The shards that `path` names: all in a folder, or those of a pattern such as train-*.tar, train-{000..099}.tar.

    None where there are none, unless it is a URL. Raises `Failure` for a place that cannot be listed.
    """
    text, url = as_url(path) or str(path), as_url(path) is not None
    folder, pattern = (text, f"*{SUFFIX}") if not text.endswith(SUFFIX) else _cut(text)
    if not url and not Path(folder).is_dir():
        return None
    place = open_place(folder)
    wanted = _ranged(pattern)
    names = [name for name in place.names() if any(fnmatchcase(name, one) for one in wanted) and name[:1] != "."]
    return Shards(place, sorted(names)) if names or url else None


def lies_here(path: Path) -> bool:
    """Whether a path names something on this machine, be it by a pattern: a URL or a name on a hub does not."""
    return path.exists() or (as_url(path) is None and find_shards(path) is not None)


def _cut(text: str) -> tuple[str, str]:
    """The folder, and the last part of a path or URL."""
    folder, slash, name = text.replace("\\", "/").rpartition("/")
    return folder or slash or ".", name


def _ranged(pattern: str) -> list[str]:
    """The patterns that WebDataset's {000..099} stands for."""
    texts = RANGE.split(pattern)  # between two ranges, then the first and last number of each
    ranges = [range(int(a), int(b) + 1) for a, b in zip(texts[1::3], texts[2::3], strict=True)]
    widths = [len(a) for a in texts[1::3]]
    patterns = []
    for numbers in product(*ranges):
        digits = [f"{k:0{width}d}" for k, width in zip(numbers, widths, strict=True)]
        patterns.append("".join(a + b for a, b in zip(texts[::3], [*digits, ""], strict=True)))
    return patterns


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """In every epoch the shards are shuffled, and then the pictures of `window` shards at a time.

    So a run reads few shards at once, each of them once an epoch, and can begin anywhere.

    Attributes:
        starts: (S + 1,) int64, where the pictures of each shard begin, and their number.
        window: shards that are shuffled together.
    """

    starts: np.ndarray
    window: int

    def indices(self, first: int, count: int, seed: int) -> np.ndarray:
        """Pictures first .. first + count - 1 of an endless run. (count,) int64."""
        n, parts = int(self.starts[-1]), list[np.ndarray]()
        while count:
            epoch, at = divmod(first, n)
            bounds = _shuffled(self, epoch, seed)[1]
            group = int(np.searchsorted(bounds, at, "right")) - 1
            start = at - int(bounds[group])
            parts.append(_group(self, epoch, group, seed)[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)


@lru_cache(maxsize=4)
def _shuffled(order: ShardOrder, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards of an epoch in order, (S,), and where each group of them begins in it, and the end, (groups + 1,)."""
    shards = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(order.starts) - 1)
    ends = np.cumsum(np.diff(order.starts)[shards])
    return shards, np.concatenate([[0], ends[order.window - 1 : -1 : order.window], ends[-1:]])


@lru_cache(maxsize=4)
def _group(order: ShardOrder, epoch: int, group: int, seed: int) -> np.ndarray:
    """The pictures of a group of shards, shuffled."""
    shards = _shuffled(order, epoch, seed)[0][group * order.window : (group + 1) * order.window]
    pictures = np.concatenate([np.arange(order.starts[k], order.starts[k + 1]) for k in shards])
    return np.random.Generator(np.random.PCG64([seed, epoch, group])).permutation(pictures)
