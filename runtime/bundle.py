"""A bundle: the folder that passes from export to runtime. Data only: bundle.json and the files it lists with their sha256."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import BadInput, Failure
from .fitted import TERMS, Fitted, parse_fitted, parse_interval
from .folders import restore_folder
from .graph_file import GraphFile, read_graph
from .schedule import Schedule

FORMAT_VERSION = 1
MOST_STEPS, MOST_VALUES = 100_000, 2**26
FLOAT32, INT64 = 1, 7  # ONNX's element types
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What reading an entry of bundle.json raises where it is not as it must be."""
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
            raise BadInput(
                f"--precision: {self.path} has no '{precision}' variant; choose from {', '.join(self.variants)}"
            )
        return self.variants[precision]


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Read and check a bundle, by default the packaged CIFAR-10 model: its description, the hash of every file, and that its graphs
    are of the described pictures and hold all their weights, in themselves or in files that have a hash.

    A bundle that a killed export left beside its place gets its name back.

    Raises:
        Failure: a missing folder or file, a wrong hash, a later format, a bundle.json or a graph that is not as it must be.
    """
    folder = Path(path) if path is not None else PACKAGED
    try:
        restore_folder(folder)
    except (OSError, ValueError) as error:
        raise Failure(
            f"{folder}: an export was killed while it replaced this bundle, and renaming it back fails ({error})"
        ) from None
    file = folder / "bundle.json"
    if not file.is_file():
        raise Failure(
            f"{folder}: no bundle there (bundle.json is missing); expected a folder written by cfgdiff export"
        )
    try:
        tree = json.loads(file.read_bytes())
        json.dumps(tree, ensure_ascii=False).encode()  # fails for what cannot be printed
    except (ValueError, OSError, RecursionError) as error:
        raise Failure(f"{file}: not readable as JSON ({error}); export the model again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("format_version"), int):
        raise Failure(f"{file}: expected an object with format_version {FORMAT_VERSION}; export the model again")
    if tree["format_version"] != FORMAT_VERSION:
        raise Failure(
            f"{file}: format_version is {tree['format_version']}, this cfgdiff reads {FORMAT_VERSION}; update cfgdiff"
        )
    bundle = _parse(folder, file, tree)
    for variant in bundle.variants.values():
        files = {name: _checked_file(folder, name, digest) for name, digest in variant.files.items()}
        _check_graph(folder / variant.graph, files[variant.graph], variant, bundle)
    return bundle


def _parse(folder: Path, file: Path, tree: dict[str, Any]) -> Bundle:
    key = "an entry"

    def take(source: dict[str, Any], name: str, kind: Callable[[Any], Any]) -> Any:
        nonlocal key
        key = name
        return kind(source[name])

    try:
        schedule, defaults = take(tree, "schedule", dict), take(tree, "defaults", dict)
        return Bundle(
            path=folder,
            name=take(tree, "name", _text),
            class_names=take(tree, "class_names", _names),
            image_shape=take(tree, "image_shape", _shape),
            schedule=take(tree, "schedule", lambda _: Schedule(**schedule)),
            defaults=Defaults(
                sampler=take(defaults, "sampler", _text),
                steps=take(defaults, "steps", lambda n: _whole(n, MOST_STEPS)),
                guidance=take(defaults, "guidance", _finite),
                interval=take(defaults, "interval", _interval) if "interval" in defaults else None,
            ),
            variants=take(tree, "variants", _variants),
            provenance=take(tree, "provenance", dict),
            fitted=take(tree, "fitted", lambda fs: {int(n): _fitted(int(n), f) for n, f in fs.items()})
            if "fitted" in tree
            else {},
            evaluation=take(tree, "evaluation", dict) if "evaluation" in tree else {},
            speeds=take(tree, "speeds", lambda records: tuple(map(_speed_record, records))) if "speeds" in tree else (),
        )
    except DAMAGE as error:
        if isinstance(error, Failure):  # it names the file or the value
            raise
        raise Failure(f"{file}: '{key}' is missing or not as expected; export the model again") from None


def _text(value: Any) -> str:
    if not (isinstance(value, str) and value and not any(c < " " for c in value)):
        raise ValueError("not a line of text")
    return value


def _names(value: Any) -> list[str]:
    if not (isinstance(value, list) and value):
        raise ValueError("no names")
    return [_text(name) for name in value]


def _whole(value: Any, most: int) -> int:
    if not (isinstance(value, int) and 1 <= value <= most):
        raise ValueError(f"no whole number from 1 to {most}")
    return value


def _finite(value: Any) -> float:
    if not -float("inf") < (number := float(value)) < float("inf"):
        raise ValueError("no finite number")
    return number


def _interval(value: Any) -> tuple[float, float] | None:
    found = parse_interval(value)
    if found is not None and not 0 <= found[0] < found[1]:
        raise ValueError("no interval")
    return found


def _shape(value: Any) -> tuple[int, int, int]:
    c, h, w = (_whole(v, MOST_VALUES) for v in value)
    _whole(c * h * w, MOST_VALUES)
    return c, h, w


def _fitted(n: int, value: Any) -> Fitted:
    found = parse_fitted(value)
    numbers = [*found.timesteps, found.guidance, *(c for row in found.coefficients for c in row)]
    if n < 1 or not found.coefficients or not all(1 <= len(row) <= TERMS for row in found.coefficients):
        raise ValueError("no evaluations, or of other terms than a fitted step has")
    if not all(map(math.isfinite, numbers)) or any(a <= b for a, b in pairwise(found.timesteps)):
        raise ValueError("timesteps fall, and all numbers are finite")
    return found


def _variants(value: Any) -> dict[str, Variant]:
    found = {_text(name): _variant(v) for name, v in value.items()}
    if "float32" not in found or any(name != variant.precision for name, variant in found.items()):
        raise ValueError("no float32 variant, or one of another precision than its name")
    return found


def _variant(v: dict[str, Any]) -> Variant:
    graph, files = v["graph"], v["files"]
    if graph not in files or not all(map(_text, files.values())):
        raise ValueError("graph without hash")
    certificate = v.get("certificate")
    if certificate is not None and not isinstance(certificate["passed"], bool):
        raise ValueError("certificate without verdict")
    if certificate is not None and not all(isinstance(text, str) for text in certificate.get("failures", [])):
        raise ValueError("failures are texts")
    return Variant(graph, v["precision"], dict(files), certificate)


def _speed_record(r: dict[str, Any]) -> SpeedRecord:
    instructions, threads, times = r["instructions"], r["threads"], r["times"]
    if not isinstance(instructions, list) or not all(
        isinstance(v, str) for v in (*instructions, r["engine"], r["precision"])
    ):
        raise ValueError("instructions, engine and precision are names")
    if not (
        isinstance(threads, int) and threads > 0 and isinstance(times, int | float) and 0 < float(times) < float("inf")
    ):
        raise ValueError("threads and times are numbers above 0")
    return SpeedRecord(tuple(instructions), threads, r["engine"], r["precision"], float(times))


def _checked_file(folder: Path, name: str, digest: str) -> bytes:
    """What is in a file, after checking its hash."""
    if not (name.isprintable() and name and Path(name).name == name and "\\" not in name):
        raise Failure(f"{folder / 'bundle.json'}: file name {name!r} leaves the bundle; export the model again")
    try:
        if not (folder / name).is_file():  # reading a pipe would wait for ever
            raise OSError
        data = (folder / name).read_bytes()
    except OSError:
        raise Failure(
            f"{folder / name}: listed in bundle.json but missing or not readable; copy or export the bundle again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise Failure(
            f"{folder / name}: damaged, sha256 is {found[:12]}…, expected {digest[:12]}…; copy or export the bundle again"
        )
    return data


def _check_graph(path: Path, data: bytes, variant: Variant, bundle: Bundle) -> None:
    """Raises `Failure` where a graph is not of the contract for such pictures and classes, or reads a file that has no hash."""
    if path.suffix != ".onnx":  # engines choose how to read a file by its name
        raise Failure(f"{path}: expected a graph with a name that ends in .onnx; export the model again")
    try:
        graph = read_graph(data)
    except ValueError as error:
        raise Failure(f"{path}: not readable as an ONNX file ({error}); export the model again") from None
    if unlisted := sorted(graph.locations - variant.files.keys()):
        raise Failure(
            f"{path}: reads weights from {unlisted[0]!r}, which bundle.json lists no sha256 for; export the model again"
        )
    if problem := _contradiction(graph, bundle):
        raise Failure(f"{path}: {problem}; correct bundle.json, or export the model again")


def _contradiction(graph: GraphFile, bundle: Bundle) -> str:
    """What of a graph is not as the contract and bundle.json say, in words; empty where all is."""
    pictures, row = (FLOAT32, 4), (FLOAT32, 1)
    inputs = {"sample": pictures, "timestep": row, "class_label": (INT64, 1), "guidance": row}
    for what, found, expected in (
        ("inputs", graph.inputs, inputs),
        ("outputs", graph.outputs, {"prediction": pictures}),
    ):
        if {name: (kind, len(shape)) for name, (kind, shape) in found.items()} != expected:
            return f"its {what} are {', '.join(found) or 'none'}; expected {', '.join(expected)}, of the ranks and types of the contract"
    for name, (_, (batch, *shape)) in (graph.inputs | graph.outputs).items():
        if batch is not None:
            return f"{name} is for a batch of {batch} alone; expected any"
        if shape and any(mine not in (None, theirs) for mine, theirs in zip(shape, bundle.image_shape, strict=True)):
            return f"{name} is of pictures {tuple(shape)}, expected image_shape {bundle.image_shape}"
    try:
        classes = len(json.loads(graph.metadata.get("class_names", "null")) or bundle.class_names)
    except (*DAMAGE, RecursionError):
        return "its metadata class_names are no list in JSON"
    return (
        ""
        if classes == len(bundle.class_names)
        else f"it is of {classes} classes, expected {len(bundle.class_names)} by class_names"
    )
