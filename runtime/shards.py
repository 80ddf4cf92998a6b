"""Large sets of pictures in shards: what a shard's manifest says, and how finished shards are read back.

A set lies in a folder or at a URL (see `places`). Shard k holds the pictures k * shard_size .. of the set, in one file
or folder, as `shard-000017.tar`, and its manifest `shard-000017.json` is written after it. So a shard is finished
exactly if it has a manifest. It knows no engines and draws nothing.
"""

import json
import math
import re
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .bundle import DAMAGE
from .errors import Failure
from .places import Place
from .shard_formats import FORMATS, decoded

VERSION = 1
PREFIX, SUFFIX, MOST_SHARDS = "shard-", ".json", 1_000_000
# What two shards of one set may differ in. Not the engine: another one draws the same pictures but for a grey level.
OWN = ("version", "shard", "first", "count", "file", "bytes", "sha256", "batch", "engine")


@dataclass(frozen=True)
class Manifest:
    """What is in one finished shard. Picture i of the set has class `classes[i % len(classes)]`."""

    shard: int
    """Its number k, 0 .. ."""
    first: int
    """The index i of its first picture in the set: k * shard_size."""
    count: int
    """Pictures in it: shard_size, or fewer in the last one of the set."""
    shard_size: int
    """Pictures in every shard but the last."""
    file: str
    """The name of the file or folder beside the manifest, as shard-000017.tar."""
    bytes: int
    """Its size; of a folder, the sum of its files."""
    sha256: str
    """Of the file; of a folder, see `places.sha256_of`."""
    format: str
    """A name in `shard_formats.FORMATS`: tar, parquet, folder."""
    kind: str
    """Of the pictures: png or webp."""
    class_names: tuple[str, ...]
    """All classes of the model: label k is class_names[k]."""
    classes: tuple[str, ...]
    """The classes that were drawn, in turn."""
    guidance: tuple[float, ...]
    """w, in turn."""
    seed: int
    """Picture i depends on (seed, i), its class and its w alone."""
    settings: dict[str, Any]
    """What else the pictures depend on, as in their notes: steps, sampler, and what was asked for beside them."""
    batch: int
    """Pictures at a time, from the shard's first one on: the last bit of a prediction may depend on it."""
    shape: tuple[int, int, int]
    """(H, W, C) of a picture."""
    model: str
    """The bundle's name."""
    model_sha256: str
    """Digest of the graph; see `notes.model_digest`."""
    engine: str
    """The engine that drew it."""
    precision: str
    """The precision that it computed in."""
    stage_models: tuple[dict[str, str], ...] = ()
    """Of a cascade's stages: `model_sha256`, `engine` and `precision` of each. The three above are then of its base."""
    version: int = VERSION
    """Of this format."""

    def to_json(self) -> dict[str, Any]:
        """As the manifest's file holds it; that of one network has no `stage_models`."""
        tree = asdict(self)
        return tree if self.stage_models else {k: v for k, v in tree.items() if k != "stage_models"}

    @property
    def made_by(self) -> list[tuple[str, str]]:
        """(engine, precision) of every network, the base first."""
        return [(self.engine, self.precision), *((each["engine"], each["precision"]) for each in self.stage_models)]

    @property
    def labels(self) -> np.ndarray:
        """The labels of its pictures, (count,) int64, in order."""
        numbers = {name: k for k, name in enumerate(self.class_names)}
        turn = np.array([numbers[name] for name in self.classes], np.int64)
        return turn[np.arange(self.first, self.first + self.count) % len(turn)]


def manifest_name(shard: int) -> str:
    """The name of a shard's manifest, as shard-000017.json."""
    return f"{stem(shard)}{SUFFIX}"


def stem(shard: int) -> str:
    """What the names of a shard's files begin with. It does not depend on how many shards there are."""
    return f"{PREFIX}{shard:06d}"


def shard_number(name: str) -> str:
    """The digits in the name of a manifest; empty for another name."""
    found = re.fullmatch(rf"{PREFIX}(\d+){SUFFIX}", name)
    return found[1] if found else ""


def parse_manifest(text: bytes, where: str) -> Manifest:
    """A manifest from its JSON. Raises `Failure`, naming `where`, for one that is damaged or of another version."""
    try:
        tree = json.loads(text)
        if tree["version"] != VERSION:
            expected = f"expected a manifest of version {VERSION}, found {tree['version']!r:.20}"
            raise Failure(f"{where}: {expected}; read it with the release of cfgdiff that wrote it")
        tree.setdefault("stage_models", [])
        parts = {field.name: _checked(field.name, tree[field.name]) for field in fields(Manifest)}
        manifest = Manifest(**parts)
        if not (manifest.classes and manifest.guidance and set(manifest.classes) <= set(manifest.class_names)):
            raise ValueError
        if manifest.format not in FORMATS or len(manifest.shape) != 3 or "/" in manifest.file or not manifest.count:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        entry = f" (its entry {error})" if isinstance(error, KeyError) else ""
        raise Failure(f"{where}: is damaged{entry}; remove it, and draw its shard again") from None
    return manifest


COUNTS = ("shard", "first", "count", "shard_size", "bytes", "seed", "batch", "version")
OF_STAGE = {"model_sha256", "engine", "precision"}
LISTS = {"stage_models": dict, "class_names": str, "classes": str, "guidance": (int, float), "shape": int}


def _checked(name: str, value: Any) -> Any:
    """An entry of a manifest, of the right type. Raises ValueError."""
    if name in LISTS:
        if not isinstance(value, list) or not all(isinstance(v, LISTS[name]) for v in value):  # type: ignore[arg-type]
            raise ValueError
        if name == "stage_models" and not all(
            each.keys() == OF_STAGE and all(map(_word, each.values())) for each in value
        ):
            raise ValueError
        return tuple(value)
    wanted = int if name in COUNTS else dict if name == "settings" else str
    if type(value) is not wanted or (isinstance(value, int) and value < 0):
        raise ValueError
    return value


def _word(value: Any) -> bool:
    return isinstance(value, str)


def differing(manifest: Manifest, other: Manifest, called: str) -> list[str]:
    """The settings in which a shard differs from another one, as "steps 2 (now 1)", where the other is `called` now."""
    a, b = (_flat(m) for m in (manifest, other))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return [f"{key} {_shown(a.get(key))} ({called} {_shown(b.get(key))})" for key in keys]


def _flat(manifest: Manifest) -> dict[str, Any]:
    tree = {name: value for name, value in manifest.to_json().items() if name not in (*OWN, "settings", "stage_models")}
    for k, each in enumerate(manifest.stage_models, start=1):
        tree |= {f"stage {k} {name}": each[name] for name in sorted(OF_STAGE - {"engine"})}
    for k, each in enumerate(manifest.settings.get("stages", ()), start=1):
        tree |= {f"stage {k} {name}": value for name, value in each.items()}
    return json.loads(json.dumps(tree | {k: v for k, v in manifest.settings.items() if k != "stages"}))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value[:10])) + (",…" if len(value) > 10 else "")
    return "none" if value is None else f"{value:.12}…" if isinstance(value, str) and len(value) == 64 else str(value)


def read_manifests(place: Place) -> list[Manifest]:
    """The manifests of all finished shards, by their number.

    Raises:
        Failure: there are none, one is damaged, or they are not of one set; it names the file.
    """
    names = sorted(filter(shard_number, place.names()))
    if not names:
        raise Failure(f"{place}: holds no finished shard ({PREFIX}*{SUFFIX}); expected a set drawn with `shard_size`")
    texts = place.read_all(names)
    manifests = sorted((parse_manifest(texts[name], place.at(name)) for name in names), key=lambda m: m.shard)
    for manifest in manifests[1:]:
        if others := differing(manifest, manifests[0], f"{manifest_name(manifests[0].shard)}:"):
            where = place.at(manifest_name(manifest.shard))
            raise Failure(f"{where}: is of another set: {', '.join(others)}; keep sets in places of their own")
    return manifests


def gaps(manifests: Sequence[Manifest], n: int | None = None) -> list[int]:
    """The shards that are missing from a set of n pictures; without n, up to the last finished one."""
    size = manifests[0].shard_size
    stop = manifests[-1].shard + 1 if n is None else math.ceil(n / size)
    return sorted(set(range(stop)) - {manifest.shard for manifest in manifests})


def read_shard(place: Place, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (N, H, W, C) uint8 and labels (N,) int64 of a finished shard, in order.

    Raises:
        Failure: it is missing, damaged, or does not hold what its manifest says; it names the file.
    """
    where = place.at(manifest.file)
    pictures = np.empty((manifest.count, *manifest.shape), np.uint8)
    labels, found = np.empty(manifest.count, np.int64), 0
    try:
        with place.local(manifest.file) as path:
            for item in FORMATS[manifest.format].read(path):
                picture = decoded(item.data, f"{where}: picture {item.index}")
                if item.index != manifest.first + found or picture.shape != manifest.shape:
                    raise ValueError
                pictures[found], labels[found], found = picture, item.label, found + 1
        if found < manifest.count:
            raise ValueError
    except (OSError, tarfile.TarError, *DAMAGE):
        expected = f"expected {manifest.count} pictures of {manifest.shape} from {manifest.first} on"
        raise Failure(f"{where}: {expected}, as its manifest says, found other or damaged ones; make it anew") from None
    return pictures, labels
