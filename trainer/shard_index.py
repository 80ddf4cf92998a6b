"""The index of .tar shards: where each picture lies, and its label. It decodes no pictures."""

import io
import json
import tarfile
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.shards import PREFIX, parse_manifest

from .data import counted
from .picture_folder import SUFFIXES
from .readers import MOST_CLASSES
from .shard_order import SUFFIX, Shards

CLASSES = "classes.txt"
AT_ONCE = 8  # shards that are read at once


@dataclass(frozen=True)
class Positions:
    """Where pictures lie: those of shard k are starts[k] .. starts[k + 1] - 1, with `sizes` bytes at `offsets` each."""

    starts: np.ndarray  # (S + 1,) int64
    offsets: np.ndarray  # (N,) int64
    sizes: np.ndarray  # (N,) int32

    def part(self, rows: np.ndarray) -> "Positions":
        """Those of some pictures, in order."""
        return Positions(np.searchsorted(rows, self.starts), self.offsets[rows], self.sizes[rows])


@dataclass(frozen=True)
class Index:
    """What shards hold: positions and labels (N,) int64 of all pictures, class names, and sizes (width, height) of
    some of them."""

    positions: Positions
    labels: np.ndarray
    class_names: list[str]
    picture_sizes: set[tuple[int, int]]


def manifest_of(name: str) -> str:
    """The file beside a shard in which cfgdiff-run describes it."""
    return f"{name.removesuffix(SUFFIX)}.json"


def index_shards(shards: Shards) -> Index:
    """Read through all shards. Raises `Failure`, naming shard and picture, for what is damaged or without a label."""
    from tqdm import tqdm

    with ThreadPoolExecutor(AT_ONCE) as pool:
        reading = pool.map(lambda name: _read_shard(shards, name), shards.names)
        progress = tqdm(reading, total=len(shards.names), desc="indexing", unit="shards", leave=False, disable=None)
        found = list(progress)
    positions = Positions(
        np.concatenate([[0], np.cumsum([len(shard.labels) for shard in found])]),
        np.concatenate([np.array(shard.offsets, np.int64) for shard in found]),
        np.concatenate([np.array(shard.sizes, np.int32) for shard in found]),
    )
    labels = np.concatenate([np.array(shard.labels, np.int64) for shard in found])
    return Index(positions, labels, _class_names(shards, labels, found), {s.first for s in found if s.first})


@dataclass
class _Shard:
    """What a shard holds."""

    offsets: "array[int]" = field(default_factory=lambda: array("q"))  # a list would take 32 bytes for each
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    labels: "array[int]" = field(default_factory=lambda: array("q"))
    names: dict[int, str | None] = field(default_factory=dict)  # of classes, as notes say
    first: tuple[int, int] | None = None  # (width, height) of the first picture


def _read_shard(shards: Shards, name: str) -> _Shard:
    """Raises `Failure`, naming shard and picture, for what is damaged or without a label."""
    shard, where = _Shard(), shards.place.at(name)
    with shards.place.local(name) as path, path.open("rb") as file:
        try:
            for key, members in _samples(file):
                _add(shard, where, key, members, file)
        except tarfile.TarError as error:
            raise Failure(f"{where}: is damaged ({error}); make or copy the shard again") from None
    if not shard.labels:
        raise Failure(f"{where}: holds no pictures; expected KEY.png with KEY.cls beside it, as WebDataset has them")
    return shard


def _samples(file: IO[bytes]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The files of each sample by suffix: those in turn whose names are the same up to the first dot."""
    archive, key, members = _opened(file), "", dict[str, tarfile.TarInfo]()
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else they are all kept in memory
        folder, slash, name = member.name.rpartition("/")
        if not member.isfile() or name.startswith("."):
            continue
        stem, _, suffix = name.partition(".")
        if f"{folder}{slash}{stem}" != key:
            if members:
                yield key, members
            key, members = f"{folder}{slash}{stem}", {}
        members[suffix.lower()] = member
    if members:
        yield key, members
    file.seek(archive.offset)  # type: ignore[attr-defined]  # tarfile takes a damaged header for the end
    if (end := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"{'a damaged header' if end else 'cut off'} at byte {archive.offset}")  # type: ignore[attr-defined]


def _opened(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:")


def _add(shard: _Shard, where: str, key: str, members: dict[str, tarfile.TarInfo], file: IO[bytes]) -> None:
    """A sample."""

    def content(member: tarfile.TarInfo) -> bytes:
        file.seek(member.offset_data)
        return file.read(member.size)

    kinds = [suffix for suffix in members if f".{suffix}" in SUFFIXES]
    if len(kinds) != 1 or "cls" not in members:
        expected = "one picture with a .cls of its class number beside it"
        raise Failure(
            f"{where}: '{key}': expected {expected}, found {', '.join(sorted(members))}; write the shard again"
        )
    picture, text = members[kinds[0]], content(members["cls"]).strip()
    if not text.isdigit() or int(text) >= MOST_CLASSES:
        expected = f"a class number of 0 .. {MOST_CLASSES - 1}"
        raise Failure(f"{where}: '{key}.cls': expected {expected}, found {text.decode(errors='replace')!r:.40}")
    label = int(text)
    if label not in shard.names:
        shard.names[label] = _noted(content(members["json"])) if "json" in members else None
    if shard.first is None:
        shard.first = _head(content(picture))
    shard.offsets.append(picture.offset_data)
    shard.sizes.append(picture.size)
    shard.labels.append(label)


def _noted(note: bytes) -> str | None:
    """The name of the class that a note says."""
    try:
        name = json.loads(note)["class"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None


def _head(data: bytes) -> tuple[int, int] | None:
    """(width, height); None for a picture that cannot be read, which is reported where it is used."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # Pillow's readers of damaged files raise a dozen kinds
        return None


def _class_names(shards: Shards, labels: np.ndarray, found: list[_Shard]) -> list[str]:
    """From classes.txt, a line each, from a manifest, or from notes; else numbers."""
    first, most, names = manifest_of(shards.names[0]), int(labels.max()), list[str]()
    files, where = shards.place.read_all([CLASSES, first]), shards.place.at(CLASSES)
    if CLASSES in files:
        names = [line.strip() for line in files[CLASSES].decode(errors="replace").splitlines() if line.strip()]
    elif first in files and first.startswith(PREFIX):
        where = shards.place.at(first)
        names = list(parse_manifest(files[first], where).class_names)
    if not names:
        noted = {label: name for shard in reversed(found) for label, name in shard.names.items() if name}
        return [noted.get(k, str(k)) for k in range(most + 1)]
    if most >= len(names):
        known = counted(len(names), "class", "classes")
        raise Failure(f"{where}: names {known}, but a shard has the label {most}; correct the names or the labels")
    return names
