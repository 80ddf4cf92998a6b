"""A model, and the bundle that holds one: the folder that passes from export to runtime.

Data only: bundle.json and the files it lists with their sha256.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .certificate import Certificate, parse_certificate
from .errors import BadInput, Failure
from .files import restore_folder
from .fitted import Fitted, parse_fitted
from .graph_file import contradiction, read_graph
from .model import Condition as Condition
from .model import Defaults as Defaults
from .model import Model as Model
from .schedule import Schedule
from .values import condition, finite, integer, interval, names, shape, text

FORMAT_VERSION, STAGED_VERSION = 1, 2  # the second of bundles with super-resolution stages, which 1 had not
MOST_STEPS = 100_000
# What reading a damaged entry of bundle.json raises.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
MODELS = Path(__file__).parent / "models"
PACKAGED, TURBO = "cifar10-small", "cifar10-turbo"


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


@dataclass(frozen=True, kw_only=True)
class Bundle(Model):
    """A model in a folder.

    Attributes:
        variants: its graphs, by precision.
        provenance: data set, pictures seen, training command and what else the trainer recorded.
        evaluation: the report of `cfgdiff eval`.
        speeds: the records of `cfgdiff engines --measure --store`, of any machine.
        stages: the super-resolution stages of a cascade, each in a folder of its own: what this one draws, the first
            enlarges, and so on.
        gmac: billions of multiply-adds in a row of the network; None where the export did not record it.
    """

    path: Path
    variants: dict[str, Variant]
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    speeds: tuple[SpeedRecord, ...] = ()
    stages: "tuple[Bundle, ...]" = ()
    gmac: float | None = None

    @property
    def models(self) -> "tuple[Bundle, ...]":
        """All networks of a cascade, the base first, without stages; of another bundle, itself."""
        return replace(self, stages=()), *self.stages

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures that are drawn: in a cascade, those of its last stage."""
        return self.models[-1].image_shape

    def up_to(self, size: int) -> "Bundle":
        """The part of a cascade that draws pictures of that height. Raises `BadInput` with the choices."""
        sizes = [model.image_shape[1] for model in self.models]
        if size not in sizes:
            choices = ", ".join(map(str, sizes))
            raise BadInput(f"size: {self.name} draws pictures of {choices}, found {size}; take one of these")
        return replace(self, stages=self.stages[: sizes.index(size)])

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
    tree = _read(folder / "bundle.json")
    bundle, stages = _parse(folder, tree), tree.get("stages")
    for variant in bundle.variants.values():
        files = {name: _checked_file(folder, name, digest) for name, digest in variant.files.items()}
        _check_graph(folder / variant.graph, files[variant.graph], variant, bundle)
    return bundle if not stages else replace(bundle, stages=_loaded_stages(bundle, stages))


def _loaded_stages(base: Bundle, names: Any) -> tuple[Bundle, ...]:
    """The stages of a cascade, checked to enlarge each other's pictures."""
    again, stages, below = "export the cascade again", list[Bundle](), base
    if not isinstance(names, list) or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise Failure(f"{base.path / 'bundle.json'}: 'stages' is not as expected, a list of folders in it; {again}")
    for place, name in enumerate(names, start=1):
        stage = load_bundle(base.path / name)
        (c, h, w), known = below.image_shape, stage.condition
        if known is None or known.stage != place or stage.stages:
            raise Failure(f"{stage.path}: expected super-resolution stage {place}, found another model; {again}")
        if stage.image_shape != (c, h * known.factor, w * known.factor) or stage.class_names != base.class_names:
            expected = f"pictures of {w * known.factor}x{h * known.factor} in the classes of {base.path}"
            raise Failure(f"{stage.path}: expected {expected}, found others; {again}")
        stages.append(stage)
        below = stage
    return tuple(stages)


def read_description(folder: Path) -> Bundle:
    """What bundle.json in a folder says, without its graphs: for a network that runs elsewhere. Raises `Failure`."""
    return _parse(folder, _read(folder / "bundle.json"))


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
    if (version := tree["format_version"]) not in (FORMAT_VERSION, STAGED_VERSION):
        known = f"{FORMAT_VERSION} and {STAGED_VERSION}"
        raise Failure(f"{file}: format_version is {version}, this cfgdiff reads {known}; update cfgdiff")
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
            name=take(tree, "name", text),
            class_names=take(tree, "class_names", names),
            image_shape=take(tree, "image_shape", shape),
            schedule=take(tree, "schedule", lambda _: Schedule(**schedule)),
            defaults=Defaults(
                sampler=take(defaults, "sampler", text),
                steps=take(defaults, "steps", lambda n: integer(n, MOST_STEPS)),
                guidance=take(defaults, "guidance", finite),
                interval=take(defaults, "interval", interval, absent=None),
            ),
            variants=take(tree, "variants", _variants),
            provenance=take(tree, "provenance", dict),
            fitted=take(tree, "fitted", _fitted, absent={}),
            guidance_input=take(tree, "guidance_input", lambda ends: interval(list(map(finite, ends))), absent=None),
            few_steps=take(tree, "few_steps", lambda flag: _few(flag, tree), absent=False),
            condition=take(tree, "condition", lambda entry: condition(entry, tree), absent=None),
            evaluation=take(tree, "evaluation", dict, absent={}),
            gmac=take(tree, "gmac", finite, absent=None),
            speeds=take(tree, "speeds", lambda records: tuple(map(_speed_record, records)), absent=()),
        )
    except DAMAGE as error:
        if isinstance(error, Failure):  # it names the file or the value
            raise
        problem = f"'{key}' is missing or not as expected"
        raise Failure(f"{folder / 'bundle.json'}: {problem}; export the model again") from None


def _few(value: Any, tree: dict[str, Any]) -> bool:
    if not isinstance(value, bool) or (value and str(tree["defaults"]["steps"]) not in tree["fitted"]):
        raise ValueError("neither true nor false, or the default steps are not among those of the network")
    return value


def _fitted(value: Any) -> dict[int, Fitted]:
    fitted = {int(n): parse_fitted(steps) for n, steps in value.items()}
    if any(n < 1 or not steps.coefficients for n, steps in fitted.items()):
        raise ValueError("no evaluations")
    return fitted


def _variants(value: Any) -> dict[str, Variant]:
    variants = {text(name): _variant(v) for name, v in value.items()}
    if "float32" not in variants or any(name != variant.precision for name, variant in variants.items()):
        raise ValueError("no float32 variant, or one of another precision than its name")
    return variants


def _variant(v: dict[str, Any]) -> Variant:
    graph, files = v["graph"], v["files"]
    if graph not in files or not all(map(text, files.values())):
        raise ValueError("graph without hash")
    return Variant(graph, v["precision"], dict(files), parse_certificate(v.get("certificate")))


def _speed_record(r: dict[str, Any]) -> SpeedRecord:
    instructions, threads, times = r["instructions"], r["threads"], r["times"]
    names = [*instructions, r["engine"], r["precision"]]
    if not isinstance(instructions, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("instructions, engine and precision are names")
    if not (isinstance(threads, int) and threads > 0 and isinstance(times, int | float) and finite(times) > 0):
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
    if problem := contradiction(graph, model.image_shape, len(model.class_names), model.stage > 0):
        raise Failure(f"{path}: {problem}; correct bundle.json, or export the model again")
