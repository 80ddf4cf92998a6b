"""The source of a bundle: a float32 graph and its description, from a bundle (without PyTorch) or a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from cfgdiff.runtime import Bundle, Engine, Request, load_bundle, resolve
from cfgdiff.runtime.bundle import FORMAT_VERSION, STAGED_VERSION, Defaults, Model
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.examples import example_low
from cfgdiff.runtime.images import psnr

if TYPE_CHECKING:
    from torch import nn

    from cfgdiff.trainer.weights import LoadedModel


@dataclass(frozen=True)
class Source:
    """A float32 graph, and bundle.json without variants. `compare` adds measurements against the source to it."""

    graph: onnx.ModelProto
    description: dict[str, Any]
    compare: Callable[[Engine, Bundle], dict[str, Any]] = lambda engine, bundle: {}


def from_bundle(path: Path | None, name: str, changes: dict[str, Any]) -> Source:
    """The float32 graph of a bundle (None: the packaged one), with other defaults where `changes` names them."""
    bundle = load_bundle(path)
    graph = onnx.load(str(bundle.path / bundle.variant("float32").graph))
    description: dict[str, Any] = json.loads((bundle.path / "bundle.json").read_bytes())
    del description["variants"]
    description.pop("stages", None)  # sources of their own
    description |= {"name": name, "defaults": asdict(replace(bundle.defaults, **changes))}
    return Source(graph, description)


def checked_defaults(model: "LoadedModel", defaults: Defaults) -> Defaults:
    """The defaults. Raises `BadInput`, naming the one that a network of few steps, or with w as an input, refuses."""
    known = Model(
        model.config.network.name, model.class_names, model.image_shape, model.schedule, defaults, **model.sampling
    )
    sampler, low = None if known.few_steps else defaults.sampler, example_low(known, 1)
    resolve(
        known, Request([0], defaults.steps, defaults.guidance, sampler=sampler, interval=defaults.interval, low=low)
    )
    return defaults


def from_checkpoint(
    model: "LoadedModel", name: str, defaults: Defaults, place: int | None = None, noise: float | None = None
) -> Source:
    """The guided graph of a trained network, checked against PyTorch. Raises `Failure` where it differs.

    Args:
        place: in a cascade, 0 being its base; None: it is alone.
        noise: of a super-resolution stage, the timestep whose noise the smaller picture gets. None: the trainer's.
    """
    from cfgdiff.trainer.engine_torch import TorchEngine

    from .fold import exported, takes_condition
    from .graph import build_graph, rounded
    from .parity import check_graph, example, relative_error

    null_class, stored = len(model.class_names), rounded(model.network)
    graph = build_graph(stored, null_class, model.image_shape)
    errors = {
        "graph": check_graph(graph.SerializeToString(), stored, null_class, model.image_shape),
        "float16_weights": relative_error(
            exported(model.network, null_class),
            exported(stored, null_class),
            example(64, 10, model.image_shape, null_class, takes_condition(stored)),
        ),
    }

    def compare(engine: Engine, bundle: Bundle) -> dict[str, Any]:
        from .compare import draw

        pictures = [
            draw(e, bundle, 16)
            for e in (engine, TorchEngine(model.network, null_class, bundle.guidance_input is not None))
        ]
        measured: dict[str, Any] = {key: f"{value:.1e}" for key, value in errors.items()}
        return {"errors": measured | {"picture_psnr_db": round(psnr(*pictures), 1)}}

    description = _description(model, name, defaults, place or 1, noise)
    if place is not None:
        description["gmac"] = _gmac(exported(model.network, null_class), model.image_shape, place > 0)
    return Source(graph, description, compare)


def _description(
    model: "LoadedModel", name: str, defaults: Defaults, place: int, noise: float | None
) -> dict[str, Any]:
    """bundle.json without variants."""
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "name": name, "class_names": model.class_names,
        "image_shape": list(model.image_shape), "schedule": asdict(model.schedule), "defaults": asdict(defaults),
        "provenance": model.provenance,
    }  # fmt: skip
    description |= model.sampling
    if "fitted" in description:
        description["fitted"] = {n: asdict(fitted) for n, fitted in description["fitted"].items()}
    if "condition" in description:
        known = replace(description["condition"], stage=place)
        description |= {"format_version": STAGED_VERSION, "condition": asdict(known)}
        return description if noise is None else with_noise(description, noise)
    return description


def _gmac(network: "nn.Module", image_shape: tuple[int, int, int], further: bool) -> float:
    """Billions of multiply-adds in one row of the network."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .parity import example

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(**{key: torch.from_numpy(value) for key, value in example(1, 0, image_shape, 1, further).items()})
    return round(counter.get_total_flops() / 2e9, 6)


def with_noise(description: dict[str, Any], noise: float) -> dict[str, Any]:
    """The description of a super-resolution stage with another default. Raises `BadInput` for what is not trained."""
    most = description["condition"]["most"]
    if not 0 <= noise <= most:
        raise BadInput(f"stage_noise: {description['name']} was trained for 0 .. {most:g}, found {noise:g}; take less")
    return description | {"condition": description["condition"] | {"noise": noise}}


def check_above(path: Path, model: "LoadedModel", below: "LoadedModel") -> None:
    """Raises `Failure` where the model from `path` is no super-resolution stage for the pictures of `below`."""
    condition, (c, h, w) = model.sampling.get("condition"), below.image_shape
    if condition is None:
        raise Failure(f"{path}: draws from noise alone; expected a super-resolution stage, as of --preset sr-16-32")
    if model.image_shape != (c, h * condition.factor, w * condition.factor):
        (_, high, wide), low = model.image_shape, f"{w}x{h}"
        takes = f"{wide // condition.factor}x{high // condition.factor}"
        raise Failure(f"{path}: enlarges pictures of {takes}, found {low} below it; order the runs by size")
    if model.class_names != below.class_names:
        found, expected = (", ".join(names) for names in (model.class_names, below.class_names))
        raise Failure(f"{path}: has the classes {found:.200}; the base has {expected:.200}; train it on the same data")


def check_base(path: Path, model: "LoadedModel") -> None:
    """Raises `Failure` where a model cannot draw from noise alone."""
    if "condition" in model.sampling:
        before = "give the run that draws the smaller pictures before it: cfgdiff export BASE STAGE"
        raise Failure(f"{path}: is a super-resolution stage, which enlarges pictures; {before}")


def check_source(path: Path) -> None:
    """Raises `Failure` where `path` is a bundle, which is for --from-bundle, and not a checkpoint."""
    if (path / "bundle.json").is_file():
        raise Failure(f"{path}: is a bundle, expected a run or checkpoint; export from it with --from-bundle {path}")
