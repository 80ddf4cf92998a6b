"""The source of a bundle: a float32 graph and its description, from a bundle (without PyTorch) or a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from cfgdiff.runtime import Bundle, Engine, Request, load_bundle, resolve
from cfgdiff.runtime.bundle import FORMAT_VERSION, Defaults, Model
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import psnr

if TYPE_CHECKING:
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
    description |= {"name": name, "defaults": asdict(replace(bundle.defaults, **changes))}
    return Source(graph, description)


def checked_defaults(model: "LoadedModel", defaults: Defaults) -> Defaults:
    """The defaults. Raises `BadInput`, naming the one that a network of few steps, or with w as an input, refuses."""
    known = Model(
        model.config.network.name, model.class_names, model.image_shape, model.schedule, defaults, **model.sampling
    )
    sampler = None if known.few_steps else defaults.sampler
    resolve(known, Request([0], defaults.steps, defaults.guidance, sampler=sampler, interval=defaults.interval))
    return defaults


def from_checkpoint(model: "LoadedModel", name: str, defaults: Defaults) -> Source:
    """The guided graph of a trained network, checked against PyTorch. Raises `Failure` where it differs."""
    from cfgdiff.trainer.engine_torch import TorchEngine

    from .fold import exported
    from .graph import build_graph, rounded
    from .parity import check_graph, example, relative_error

    null_class, stored = len(model.class_names), rounded(model.network)
    graph = build_graph(stored, null_class, model.image_shape)
    errors = {
        "graph": check_graph(graph.SerializeToString(), stored, null_class, model.image_shape),
        "float16_weights": relative_error(
            exported(model.network, null_class),
            exported(stored, null_class),
            example(64, 10, model.image_shape, null_class),
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

    description = {
        "format_version": FORMAT_VERSION, "name": name, "class_names": model.class_names,
        "image_shape": list(model.image_shape), "schedule": asdict(model.schedule), "defaults": asdict(defaults),
        "provenance": model.provenance,
    }  # fmt: skip
    description |= {
        key: {n: asdict(fitted) for n, fitted in value.items()} if key == "fitted" else value
        for key, value in model.sampling.items()
    }
    return Source(graph, description, compare)


def check_source(path: Path) -> None:
    """Raises `Failure` where `path` is a bundle, which is for --from-bundle, and not a checkpoint."""
    if (path / "bundle.json").is_file():
        raise Failure(f"{path}: is a bundle, expected a run or checkpoint; export from it with --from-bundle {path}")
