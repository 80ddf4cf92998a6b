"""Labelled pictures in .tar shards, as WebDataset and `cfgdiff-run --shard-size` write them, read while a run trains.

The shards are read through once, for an index that the cache keeps: where each picture lies, and its label. Pictures
are read and decoded as they are asked for, so that neither memory nor disk holds the set; of shards at a URL only those
in use are on this machine.
"""

import io
import os
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.places import LocalPlace

from .cache import Parts, cached_arrays, content_key
from .config import BadSetting
from .data import PictureSet, counted, held_out_of
from .picture_folder import DECODING, square
from .shard_index import AT_ONCE, CLASSES, Positions, index_shards, manifest_of
from .shard_order import SUFFIX, ShardOrder, Shards, find_shards

ARRAYS = ("starts", "offsets", "sizes", "labels", "test_pictures", "test_labels")


def webdataset(path: Path, image_size: int, *, window: int = 8) -> PictureSet:
    """Shards (.tar) in a folder or at a URL; the pictures of `window` shards at a time are shuffled together."""
    if window < 1:
        raise BadSetting(f"data.options: window must be 1 or more, found {window}; 8 is usual")
    shards = find_shards(path)
    if shards is None or not shards.names:
        raise Failure(f"{path}: no .tar shards there; expected a folder or URL of them, or a pattern as train-*.tar")
    key = content_key([], "webdataset", DECODING, image_size, _identities(shards))
    described, arrays = cached_arrays(key, ARRAYS, lambda: _decode(path, shards, image_size))
    where = Positions(arrays["starts"], arrays["offsets"], arrays["sizes"])
    pictures: Any = ShardPictures(shards, where, image_size, 2 * window)  # of two groups, where one follows the other
    return PictureSet(
        described["name"], described["class_names"], pictures, arrays["labels"], arrays["test_pictures"],
        arrays["test_labels"], tuple(described["notes"]), ShardOrder(np.array(where.starts), window),
    )  # fmt: skip


class ShardPictures:
    """Pictures (N, 3, size, size) uint8, read when they are indexed. Raises `Failure` for one that is damaged."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, shards: Shards, where: Positions, size: int, open_at_once: int) -> None:
        self.shape = (int(where.starts[-1]), 3, size, size)
        self._shards, self._where, self._most = shards, where, open_at_once
        self._open, self._lock = OrderedDict[int, tuple[Path, ExitStack]](), Lock()
        weakref.finalize(self, _close, self._open)  # also when the program ends

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """(M, 3, size, size) of M numbers or a slice."""
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index, np.int64)
        pictures = np.empty((len(rows), *self.shape[1:]), np.uint8)
        owners = np.searchsorted(self._where.starts, rows, "right") - 1
        wanted = [int(k) for k in np.unique(owners)]
        with self._lock, ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
            for first in range(0, len(wanted), self._most):
                part = wanted[first : first + self._most]
                self._fetch(part, pool)
                for k in part:
                    own = np.flatnonzero(owners == k)
                    pictures[own] = list(pool.map(self._decoded, self._read(k, rows[own])))
        return pictures

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def _read(self, k: int, rows: np.ndarray) -> list[tuple[int, int, bytes]]:
        """Of some pictures of shard k: k, where it lies, and its bytes."""
        offsets, sizes = (column[rows].tolist() for column in (self._where.offsets, self._where.sizes))
        with self._open[k][0].open("rb") as file:
            return [(k, offset, _at(file, offset, size)) for offset, size in zip(offsets, sizes, strict=True)]

    def _decoded(self, data: tuple[int, int, bytes]) -> np.ndarray:
        """(3, size, size) uint8."""
        k, offset, encoded = data
        where = f"{self._shards.place.at(self._shards.names[k])}: the picture at byte {offset}"
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                return square(image, self.shape[2], where)
        except Failure:
            raise
        except Exception as error:  # Pillow's readers of damaged files raise a dozen kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Failure(f"{where} cannot be read ({reason}); make or copy the shard again") from None

    def _fetch(self, wanted: list[int], pool: ThreadPoolExecutor) -> None:
        """Shards on this machine; those that were asked for last are at the end."""

        def fetch(k: int) -> tuple[int, Path, ExitStack]:
            stack = ExitStack()
            return k, stack.enter_context(self._shards.place.local(self._shards.names[k])), stack

        for k, path, stack in pool.map(fetch, [k for k in wanted if k not in self._open]):
            self._open[k] = path, stack
        for k in wanted:
            self._open.move_to_end(k)
        while len(self._open) > self._most:
            self._open.popitem(last=False)[1][1].close()


def _close(shards: OrderedDict[int, tuple[Path, ExitStack]]) -> None:
    """Remove what was fetched of shards at a URL."""
    while shards:
        shards.popitem()[1][1].close()


def _at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _identities(shards: Shards) -> list[tuple[Any, ...]]:
    """What tells whether shards are still the same: name, size and, where known, time or sha256; and class names."""
    place, names = shards
    files = place.read_all([manifest_of(name) for name in names] + [CLASSES])
    times = {}
    if isinstance(place, LocalPlace):
        times = {name: (place.path / name).stat().st_mtime_ns for name in names}
    told = [(name, place.size(name), times.get(name), files.get(manifest_of(name))) for name in names]
    return [(place.at(""), files.get(CLASSES)), *told]


def _decode(path: Path, shards: Shards, image_size: int) -> Parts:
    """What the cache keeps of shards: positions and labels of the pictures to train on, and those held out, decoded."""
    index, name = index_shards(shards), path.name.removesuffix(SUFFIX) or path.resolve().name
    train, test = held_out_of(len(index.labels))
    kept, size = index.positions.part(train), (image_size, image_size)
    held_out = ShardPictures(shards, index.positions, image_size, AT_ONCE)[test]
    arrays = {
        "starts": kept.starts, "offsets": kept.offsets, "sizes": kept.sizes, "labels": index.labels[train],
        "test_pictures": held_out, "test_labels": index.labels[test],
    }  # fmt: skip
    notes = [f"{counted(len(shards.names), 'shard')}, read while training"]
    for width, height in sorted(index.picture_sizes - {size})[:1]:
        odd = any(w != h for w, h in index.picture_sizes)
        cut = ", cropped to their middle" if odd else ""
        notes.append(f"pictures of {width}x{height} become {image_size}x{image_size}{cut}")
    return {"name": name, "class_names": index.class_names, "notes": notes}, arrays
