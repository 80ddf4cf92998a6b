"""A model, and the bundle that holds one: the folder that passes from export to runtime.

Data only: bundle.json and the files it lists with their sha256.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .certificate import Certificate, parse_certificate
from .errors import BadInput, Failure
from .files import restore_folder
from .fitted import Fitted, parse_fitted, parse_interval
from .graph_file import contradiction, read_graph
from .schedule import Schedule

FORMAT_VERSION = 1
MOST_STEPS, MOST_VALUES = 100_000, 2**26
# What reading a damaged entry of bundle.json raises.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
MODELS = Path(__file__).parent / "models"
PACKAGED, TURBO = "cifar10-small", "cifar10-turbo"


@dataclass(frozen=True)
class Defaults:
    """Settings for callers that give none. Guidance acts inside `interval` of sigma / alpha; None: everywhere."""

    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Variant:
    """One graph of the model at a precision.

    Attributes:
        graph: the name of its file.
        files: every file of it, by name, with its sha256; weights may lie outside the graph's file.
    """

    graph: str
    precision: str
    files: dict[str, str]
    certificate: Certificate | None = None


@dataclass(frozen=True)
class SpeedRecord:
    """How many times as fast as `REFERENCE` an engine was on a processor, for calls of 64 guided pictures."""

    instructions: tuple[str, ...]
    threads: int
    engine: str
    precision: str
    times: float


@dataclass(frozen=True)
class Condition:
    """What a super-resolution stage takes beside x_t: the smaller picture, noised and enlarged (see upscale.py).

    Attributes:
        factor: by which it enlarges.
        noise: the timestep whose noise the smaller picture gets, unless a request says another.
        most: the largest such timestep in training.
        stage: its place in a cascade whose base is 0, a part of what its noise depends on.
    """

    factor: int
    noise: float
    most: float
    stage: int = 1


@dataclass(frozen=True)
class Model:
    """What sampling needs to know of a model, beside the engine that runs it.

    Attributes:
        class_names: class k is `class_names[k]`; the null class is K, their number.
        image_shape: (C, H, W).
        fitted: steps fitted to this model, by the number of evaluations.
        guidance_input: w from .. to, which the network takes as an input: each picture is one row of it. None: the
            graph computes every guided picture twice, with and without its class, and takes any w.
        few_steps: the network was trained for the steps in `fitted`, and predicts nothing useful at other timesteps.
        condition: of a super-resolution stage; None: pictures are drawn from noise alone.
    """

    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    schedule: Schedule
    defaults: Defaults
    fitted: dict[int, Fitted] = field(default_factory=dict, kw_only=True)
    guidance_input: tuple[float, float] | None = field(default=None, kw_only=True)
    few_steps: bool = field(default=False, kw_only=True)
    condition: Condition | None = field(default=None, kw_only=True)

    @property
    def stage(self) -> int:
        """Its place in a cascade: 0 is the base, or a model that is alone."""
        return self.condition.stage if self.condition else 0

    def rows(self, pictures: int, guided: int) -> int:
        """The rows that the network computes to evaluate `pictures`, of which `guided` are guided."""
        return pictures if self.guidance_input else pictures + guided


@dataclass(frozen=True, kw_only=True)
class Bundle(Model):
    """A model in a folder.

    Attributes:
        variants: its graphs, by precision.
        provenance: data set, pictures seen, training command and what else the trainer recorded.
        evaluation: the report of `cfgdiff eval`.
        speeds: the records of `cfgdiff engines --measure --store`, of any machine.
    """

    path: Path
    variants: dict[str, Variant]
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    speeds: tuple[SpeedRecord, ...] = ()

    def variant(self, precision: str) -> Variant:
        """The variant of that precision. Raises `BadInput` with the choices."""
        if precision not in self.variants:
            choices = ", ".join(self.variants)
            raise BadInput(f"precision: {self.path} has no '{precision}' variant; choose from {choices}")
        return self.variants[precision]


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Read and check a bundle: a folder, or a packaged model by its name; by default cifar10-small.

    Checked are its description, the hash of every file, and that its graphs are for such pictures and classes and read
    only files that have a hash. A bundle that a killed export left beside its place gets its name back.

    Raises:
        Failure: a missing folder or file, a wrong hash, a later format, a damaged bundle.json or graph.
    """
    folder = Path(PACKAGED if path is None else path)
    if path is None or not folder.is_dir():
        folder = packaged_models().get(str(folder), folder)
    try:
        restore_folder(folder)
    except (OSError, ValueError) as error:
        killed = "an export was killed while it replaced this bundle, and renaming it back fails"
        raise Failure(f"{folder}: {killed} ({error})") from None
    bundle = _parse(folder, _read(folder / "bundle.json"))
    for variant in bundle.variants.values():
        files = {name: _checked_file(folder, name, digest) for name, digest in variant.files.items()}
        _check_graph(folder / variant.graph, files[variant.graph], variant, bundle)
    return bundle


def packaged_models() -> dict[str, Path]:
    """The folders of the models that come with this package, by name."""
    return {folder.name: folder for folder in sorted(MODELS.iterdir()) if (folder / "bundle.json").is_file()}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        expected = f"a folder written by cfgdiff export, or {', '.join(packaged_models())}"
        raise Failure(f"{file.parent}: no bundle there (bundle.json is missing); expected {expected}")
    try:
        tree = json.loads(file.read_bytes())
        json.dumps(tree, ensure_ascii=False).encode()  # fails for what cannot be printed
    except (ValueError, OSError, RecursionError) as error:
        raise Failure(f"{file}: not readable as JSON ({error}); export the model again") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("format_version"), int):
        raise Failure(f"{file}: expected an object with format_version {FORMAT_VERSION}; export the model again")
    if (version := tree["format_version"]) != FORMAT_VERSION:
        raise Failure(f"{file}: format_version is {version}, this cfgdiff reads {FORMAT_VERSION}; update cfgdiff")
    return tree


def _parse(folder: Path, tree: dict[str, Any]) -> Bundle:
    key = "an entry"

    def take(source: dict[str, Any], name: str, parse: Callable[[Any], Any], **absent: Any) -> Any:
        nonlocal key
        key = name
        return absent["absent"] if absent and name not in source else parse(source[name])

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
                steps=take(defaults, "steps", lambda n: _integer(n, MOST_STEPS)),
                guidance=take(defaults, "guidance", _finite),
                interval=take(defaults, "interval", _interval, absent=None),
            ),
            variants=take(tree, "variants", _variants),
            provenance=take(tree, "provenance", dict),
            fitted=take(tree, "fitted", _fitted, absent={}),
            guidance_input=take(tree, "guidance_input", lambda ends: _interval(list(map(_finite, ends))), absent=None),
            few_steps=take(tree, "few_steps", lambda flag: _few(flag, tree), absent=False),
            evaluation=take(tree, "evaluation", dict, absent={}),
            speeds=take(tree, "speeds", lambda records: tuple(map(_speed_record, records)), absent=()),
        )
    except DAMAGE as error:
        if isinstance(error, Failure):  # it names the file or the value
            raise
        problem = f"'{key}' is missing or not as expected"
        raise Failure(f"{folder / 'bundle.json'}: {problem}; export the model again") from None


def _text(value: Any) -> str:
    if not (isinstance(value, str) and value and not any(c < " " for c in value)):
        raise ValueError("not a line of text")
    return value


def _names(value: Any) -> list[str]:
    if not (isinstance(value, list) and value):
        raise ValueError("no names")
    return [_text(name) for name in value]


def _integer(value: Any, most: int) -> int:
    if not (isinstance(value, int) and 1 <= value <= most):
        raise ValueError(f"not an integer from 1 to {most}")
    return value


def _finite(value: Any) -> float:
    if not -float("inf") < (number := float(value)) < float("inf"):
        raise ValueError("not a finite number")
    return number


def _interval(value: Any) -> tuple[float, float] | None:
    interval = parse_interval(value)
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError("not an interval")
    return interval


def _few(value: Any, tree: dict[str, Any]) -> bool:
    if not isinstance(value, bool) or (value and str(tree["defaults"]["steps"]) not in tree["fitted"]):
        raise ValueError("neither true nor false, or the default steps are not among those of the network")
    return value


def _shape(value: Any) -> tuple[int, int, int]:
    c, h, w = (_integer(v, MOST_VALUES) for v in value)
    _integer(c * h * w, MOST_VALUES)
    return c, h, w


def _fitted(value: Any) -> dict[int, Fitted]:
    fitted = {int(n): parse_fitted(steps) for n, steps in value.items()}
    if any(n < 1 or not steps.coefficients for n, steps in fitted.items()):
        raise ValueError("no evaluations")
    return fitted


def _variants(value: Any) -> dict[str, Variant]:
    variants = {_text(name): _variant(v) for name, v in value.items()}
    if "float32" not in variants or any(name != variant.precision for name, variant in variants.items()):
        raise ValueError("no float32 variant, or one of another precision than its name")
    return variants


def _variant(v: dict[str, Any]) -> Variant:
    graph, files = v["graph"], v["files"]
    if graph not in files or not all(map(_text, files.values())):
        raise ValueError("graph without hash")
    return Variant(graph, v["precision"], dict(files), parse_certificate(v.get("certificate")))


def _speed_record(r: dict[str, Any]) -> SpeedRecord:
    instructions, threads, times = r["instructions"], r["threads"], r["times"]
    names = [*instructions, r["engine"], r["precision"]]
    if not isinstance(instructions, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("instructions, engine and precision are names")
    if not (isinstance(threads, int) and threads > 0 and isinstance(times, int | float) and _finite(times) > 0):
        raise ValueError("threads and times are numbers above 0")
    return SpeedRecord(tuple(instructions), threads, r["engine"], r["precision"], float(times))


def _checked_file(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of a file, after checking their hash."""
    if not (name.isprintable() and name and Path(name).name == name and "\\" not in name):
        raise Failure(f"{folder / 'bundle.json'}: file name {name!r} leaves the bundle; export the model again")
    again = "copy or export the bundle again"
    try:
        if not (folder / name).is_file():  # reading a pipe would wait for ever
            raise OSError
        data = (folder / name).read_bytes()
    except OSError:
        raise Failure(f"{folder / name}: listed in bundle.json but missing or not readable; {again}") from None
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise Failure(f"{folder / name}: damaged, sha256 is {actual[:12]}…, expected {digest[:12]}…; {again}")
    return data


def _check_graph(path: Path, data: bytes, variant: Variant, model: Model) -> None:
    """Raises `Failure` where a graph breaks the contract, is for other pictures, or reads a file without a hash."""
    if path.suffix != ".onnx":  # engines choose how to read a file by its name
        raise Failure(f"{path}: expected a graph with a name that ends in .onnx; export the model again")
    try:
        graph = read_graph(data)
    except ValueError as error:
        raise Failure(f"{path}: not readable as an ONNX file ({error}); export the model again") from None
    if unlisted := sorted(graph.locations - variant.files.keys()):
        problem = f"reads weights from {unlisted[0]!r}, which bundle.json lists no sha256 for"
        raise Failure(f"{path}: {problem}; export the model again")
    if problem := contradiction(graph, model.image_shape, len(model.class_names)):
        raise Failure(f"{path}: {problem}; correct bundle.json, or export the model again")
