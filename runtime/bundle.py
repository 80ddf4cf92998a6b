"""A bundle: the folder that passes from export to runtime. Data only: bundle.json and the files it lists with their sha256."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BadInput, Failure
from .fitted import Fitted, parse_fitted, parse_interval
from .schedule import Schedule

FORMAT_VERSION = 1
PACKAGED = Path(__file__).parent / "models" / "cifar10-small"


@dataclass(frozen=True)
class Defaults:
    """What is used where the caller does not say. `interval` is in sigma / alpha; guidance acts inside it only."""

    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Variant:
    """One graph of the model. `files` maps every file to its sha256; `certificate` is what export or `cfgdiff verify` found of it."""

    graph: str
    precision: str
    files: dict[str, str]
    certificate: dict[str, Any] | None


@dataclass(frozen=True)
class SpeedRecord:
    """How fast an engine was on a processor with these `instructions`: `times` as fast as float32 on ONNX Runtime, 64 guided pictures
    a call."""

    instructions: tuple[str, ...]
    threads: int
    engine: str
    precision: str
    times: float


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `image_shape` is (C, H, W); class k is `class_names[k]`, the null class is K; `fitted` is by evaluations;
    `evaluation` is what `cfgdiff eval` found; `speeds` are what `cfgdiff engines --measure --store` found on any machine."""

    path: Path
    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    schedule: Schedule
    defaults: Defaults
    variants: dict[str, Variant]
    provenance: dict[str, Any]
    fitted: dict[int, Fitted]
    evaluation: dict[str, Any] = field(default_factory=dict)
    speeds: tuple[SpeedRecord, ...] = ()

    def variant(self, precision: str) -> Variant:
        """The variant of that precision. Raises `BadInput` listing what there is."""
        if precision not in self.variants:
            raise BadInput(f"--precision: {self.path} has no '{precision}' variant; choose from {', '.join(self.variants)}")
        return self.variants[precision]


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Read and check a bundle, by default the packaged CIFAR-10 model.

    Raises:
        Failure: a missing folder or file, a wrong hash, a later format, a bundle.json that is not as it must be.
    """
    folder = Path(path) if path is not None else PACKAGED
    file = folder / "bundle.json"
    if not file.is_file():
        raise Failure(f"{folder}: no bundle there (bundle.json is missing); expected a folder written by cfgdiff export")
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise Failure(f"{file}: not readable as JSON ({error}); export the model again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("format_version"), int):
        raise Failure(f"{file}: expected an object with format_version {FORMAT_VERSION}; export the model again")
    if tree["format_version"] != FORMAT_VERSION:
        raise Failure(f"{file}: format_version is {tree['format_version']}, this cfgdiff reads {FORMAT_VERSION}; update cfgdiff")
    bundle = _parse(folder, file, tree)
    for variant in bundle.variants.values():
        for name, digest in variant.files.items():
            _check_file(folder, name, digest)
    return bundle


def _parse(folder: Path, file: Path, tree: dict[str, Any]) -> Bundle:
    key = "an entry"

    def take(source: dict[str, Any], name: str, kind: Callable[[Any], Any]) -> Any:
        nonlocal key
        key = name
        return kind(source[name])

    try:
        schedule, defaults = take(tree, "schedule", dict), take(tree, "defaults", dict)
        interval = defaults.get("interval")
        return Bundle(
            path=folder,
            name=take(tree, "name", str),
            class_names=take(tree, "class_names", lambda names: [str(n) for n in names]),
            image_shape=take(tree, "image_shape", _shape),
            schedule=take(tree, "schedule", lambda _: Schedule(**schedule)),
            defaults=Defaults(
                sampler=take(defaults, "sampler", str),
                steps=take(defaults, "steps", int),
                guidance=take(defaults, "guidance", float),
                interval=None if interval is None else take(defaults, "interval", parse_interval),
            ),
            variants=take(tree, "variants", lambda vs: {name: _variant(v) for name, v in vs.items()}),
            provenance=take(tree, "provenance", dict),
            fitted=take(tree, "fitted", lambda fs: {int(n): parse_fitted(f) for n, f in fs.items()}) if "fitted" in tree else {},
            evaluation=take(tree, "evaluation", dict) if "evaluation" in tree else {},
            speeds=take(tree, "speeds", lambda records: tuple(map(_speed_record, records))) if "speeds" in tree else (),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise Failure(f"{file}: '{key}' is missing or not as expected; export the model again") from None


def _shape(value: Any) -> tuple[int, int, int]:
    c, h, w = (int(v) for v in value)
    return c, h, w


def _variant(v: dict[str, Any]) -> Variant:
    if v["graph"] not in v["files"]:
        raise ValueError("graph without hash")
    certificate = v.get("certificate")
    if certificate is not None and not isinstance(certificate["passed"], bool):
        raise ValueError("certificate without verdict")
    return Variant(v["graph"], v["precision"], dict(v["files"]), certificate)


def _speed_record(r: dict[str, Any]) -> SpeedRecord:
    instructions, threads, times = r["instructions"], r["threads"], r["times"]
    if not isinstance(instructions, list) or not all(isinstance(v, str) for v in (*instructions, r["engine"], r["precision"])):
        raise ValueError("instructions, engine and precision are names")
    if not (isinstance(threads, int) and threads > 0 and isinstance(times, int | float) and 0 < times < float("inf")):
        raise ValueError("threads and times are numbers above 0")
    return SpeedRecord(tuple(instructions), threads, r["engine"], r["precision"], float(times))


def _check_file(folder: Path, name: str, digest: str) -> None:
    if Path(name).name != name:
        raise Failure(f"{folder / 'bundle.json'}: file name '{name}' leaves the bundle; export the model again")
    try:
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError:
        raise Failure(f"{folder / name}: listed in bundle.json but missing or not readable; copy or export the bundle again") from None
    if found != digest:
        raise Failure(f"{folder / name}: damaged, sha256 is {found[:12]}…, expected {digest[:12]}…; copy or export the bundle again")
