"""Names for the parts of a run: built-ins, and those of installed packages (entry points `cfgdiff.plugins`) and files.

A plugin is a Python file that registers its parts:

    from cfgdiff.trainer.registry import register

    @register("objective", "huber")
    def huber(network, config, schedule, pictures, labels, null_class, draws, *, delta=1.0):
        "Huber's loss on the prediction."
        ...

Keyword-only parameters are the part's options: `--set objective.options='{delta: 0.5}'`.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from cfgdiff.runtime.errors import Failure, nearest

from .config import BadSetting

GROUP = "cfgdiff.plugins"
KINDS = {  # what each kind of part is called with
    "data": ("path", "image_size"),
    "network": ("config", "image_shape", "num_classes"),
    "objective": ("network", "config", "schedule", "pictures", "labels", "null_class", "draws"),
    "optimiser": ("network", "config"),
    "callback": ("run",),
}
BUILT_IN = {  # imported when used
    ("data", "cifar10"): "readers:cifar10",
    ("data", "folder"): "picture_folder:folder",
    ("data", "huggingface"): "readers:huggingface",
    ("data", "npz"): "readers:npz",
    ("data", "webdataset"): "webdataset:webdataset",
    ("network", "augmented-unet"): "augment:AugmentedUNet",
    ("network", "guided-unet"): "guided:GuidedUNet",
    ("network", "super-resolution-unet"): "super_resolution:SuperResolutionUNet",
    ("network", "unet"): "unet:UNet",
    ("objective", "augmented"): "augment:augmented_loss",
    ("objective", "consistency"): "consistency:consistency",
    ("objective", "distilled-guidance"): "teacher:distilled_guidance",
    ("objective", "simple"): "objective:loss",
    ("objective", "super-resolution"): "super_resolution:super_resolution",
    ("objective", "trajectory"): "trajectory:trajectory",
    ("optimiser", "adamw"): "optim:adamw",
    ("optimiser", "muon"): "optim:muon",
    ("callback", "best"): "callbacks:Best",
    ("callback", "meter"): "callbacks:Meter",
    ("callback", "log"): "callbacks:Log",
    ("callback", "snapshots"): "power_ema:PowerEMA",
    ("callback", "tensorboard"): "callbacks:TensorBoard",
    ("callback", "trackio"): "trackers:Trackio",
    ("callback", "wandb"): "trackers:Wandb",
    ("callback", "preview"): "callbacks:Preview",
    ("callback", "validation"): "callbacks:Validation",
}
Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part:
    """A part that a run can be made of. `origin` says where it comes from, `make` is the function or class."""

    kind: str
    name: str
    origin: str
    make: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of its description."""
        return (inspect.getdoc(self.make) or "no description").splitlines()[0]


_added: dict[tuple[str, str], Part] = {}
_loaded: set[str] = set()
_origin = "this program"


def register(kind: str, name: str) -> Callable[[Made], Made]:
    """Decorator: register a part under a name. Raises `Failure` for a taken name or a wrong signature."""
    if kind not in KINDS:
        choices = f"choose from {', '.join(KINDS)}{nearest(kind, list(KINDS))}"
        raise Failure(f"{_origin}: no kind of part '{kind}'; {choices}")
    if name in names(kind):
        taken = _added[kind, name].origin if (kind, name) in _added else "cfgdiff"
        raise Failure(f"{_origin}: the {kind} '{name}' is already there, from {taken}; choose another name")

    def add(make: Made) -> Made:
        _check_signature(kind, name, make)
        _added[kind, name] = Part(kind, name, _origin, make)
        return make

    return add


def _check_signature(kind: str, name: str, make: Callable[..., Any]) -> None:
    parameters = [p for p in inspect.signature(make).parameters.values() if p.kind is not p.VAR_KEYWORD]
    given = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if given != KINDS[kind]:
        expected = f"({', '.join(KINDS[kind])}), then options by keyword only"
        raise Failure(f"{_origin}: the {kind} '{name}' must take {expected}; found {inspect.signature(make)}")
    if required:
        raise Failure(f"{_origin}: option '{required[0]}' of the {kind} '{name}' has no default; give it one")


def _load(origin: str, load: Callable[[], Any]) -> None:
    """Run what registers parts, once, under the name of its origin; on failure its registrations are rolled back."""
    global _origin
    if origin in _loaded:
        return
    before, _origin = dict(_added), origin
    try:
        load()
    except BaseException as error:
        _added.clear()
        _added.update(before)
        if isinstance(error, Failure) or not isinstance(error, Exception):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise Failure(f"{origin}: cannot be loaded ({reason}); correct or leave out the plugin") from error
    finally:
        _origin = "this program"
    if _added.keys() == before.keys():
        expected = "at least one @register(KIND, NAME) from cfgdiff.trainer.registry"
        raise Failure(f"{origin}: registers nothing; expected {expected}")
    _loaded.add(origin)


def load_plugins(files: tuple[Path, ...] = ()) -> None:
    """Load the installed plugins, then these files. Raises `Failure` naming the plugin that cannot be loaded."""
    for point in entry_points(group=GROUP):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        _load(f"package {package} ({point.name})", point.load)
    for file in files:
        _load(str(file), functools.partial(_run_file, file))


def _run_file(file: Path) -> None:
    if not file.is_file():
        raise Failure(f"{file}: no such file; expected a Python file that registers parts")
    spec = importlib.util.spec_from_file_location(f"cfgdiff_plugin_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise Failure(f"{file}: expected a Python file, its name ending in .py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def names(kind: str) -> list[str]:
    """The names of one kind of part."""
    return sorted(name for k, name in BUILT_IN.keys() | _added.keys() if k == kind)


def check_name(kind: str, name: str) -> None:
    """Raises `BadSetting` with the choices where there is no such part. Imports nothing."""
    if name not in (known := names(kind)):
        key = "callbacks" if kind == "callback" else f"{kind}.name"
        choices = f"choose from {', '.join(known)}, or load a plugin{nearest(name, known)}"
        raise BadSetting(f"{key}: no {kind} '{name}'; {choices}")


def find(kind: str, name: str) -> Part:
    """The part of this name. Raises `BadSetting` with the choices."""
    check_name(kind, name)
    if (kind, name) in _added:
        return _added[kind, name]
    module, _, attribute = BUILT_IN[kind, name].partition(":")
    return Part(kind, name, "cfgdiff", getattr(importlib.import_module(f".{module}", __package__), attribute))


def bound(kind: str, name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """The part of this name with its options bound. Raises `BadSetting` for unknown names or options and bad values."""
    part, checked, key = find(kind, name), {}, f"callbacks.{name}" if kind == "callback" else f"{kind}.options"
    known = {p.name: p.annotation for p in inspect.signature(part.make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            choices = f"known options: {', '.join(known)}{nearest(option, list(known))}" if known else "it has none"
            raise BadSetting(f"{key}: the {kind} '{name}' has no option '{option}'; {choices}")
        checked[option] = _checked(f"{key}: option '{option}' of the {kind} '{name}'", value, known[option])
    return functools.partial(part.make, **checked)


def _checked(what: str, value: Any, annotation: Any) -> Any:
    """The value as the annotated type, or unchanged if pydantic does not know that type. Raises `BadSetting`."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(
            annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        )
    except (PydanticUserError, NameError):
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSetting(f"{what}: {first['msg']}, found {first['input']!r:.60}") from None


def all_parts() -> list[Part]:
    """Every part there is, by kind and name. Imports all built-ins."""
    return [find(kind, name) for kind in KINDS for name in names(kind)]
