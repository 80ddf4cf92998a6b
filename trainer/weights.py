"""Reads the weights of a trained model from a checkpoint, a run or a bundle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.schedule import Schedule

from .build import make_network
from .checkpoint import find_checkpoint, read_checkpoint, tensors_under
from .config import Config, make_config
from .state import check_tensors, damaged, not_finite
from .steps import sampling_of

FLOATS = (1, 10)  # ONNX's element types float32 and float16
SAME, CONSTANT = "same as", "constant"  # see `dropped_weights`


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in float32 with its averaged weights, and all that describes it."""

    network: nn.Module
    config: Config
    class_names: list[str]
    image_shape: tuple[int, int, int]
    schedule: Schedule
    provenance: dict[str, Any]

    @property
    def sampling(self) -> dict[str, Any]:
        """See `steps.sampling_of`."""
        return sampling_of(self.config)


def load_model(path: Path) -> LoadedModel:
    """The averaged weights of a checkpoint or run as a network ready for use. Raises `Failure`."""
    state, tensors = read_checkpoint(path)
    config = make_config(state["config"])
    shape: tuple[int, int, int] = tuple(state["image_shape"])
    network = make_network(config, shape, len(state["class_names"]))
    averaged = tensors_under("ema", tensors)
    try:
        check_tensors(averaged, network.state_dict(), "ema.")
    except ValueError as error:
        raise damaged(find_checkpoint(path), error) from None
    network.load_state_dict(averaged)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, state["class_names"], shape, config.schedule, _provenance(state))


def initial_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights to start from, averaged ones of a checkpoint or run or those of a bundle's float32 graph, with their
    provenance as bundles record it.

    Raises:
        Failure: there is nothing of the kind, or it is damaged.
    """
    if not (path / "bundle.json").is_file():
        state, tensors = read_checkpoint(path)
        return tensors_under("ema", tensors), _provenance(state)
    bundle = load_bundle(path)  # checks the hashes, and that all weights have one
    weights = graph_weights(path / bundle.variant("float32").graph)
    return weights, {key: value for key, value in bundle.provenance.items() if key != "errors"}


def matched(weights: dict[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """`weights`, read from `path`, in the shapes that `network` has; what they need not hold is the network's own.

    Raises:
        Failure: they are those of another network.
    """
    own = network.state_dict()
    beside = [name for name in weights if name not in own and name.endswith((".weight", ".bias"))]
    if beside:
        norm = "set network.norm=group" if ".norm" in beside[0] else "use its own preset"
        raise Failure(f"{path}: has {len(beside)} weights that this network lacks, as {beside[0]}; {norm}")
    absent = ("loss_weight.", *getattr(network, "learned_later", ()))  # bundles leave out what only training uses
    for name, value in own.items():
        found = weights.get(name, value if name.startswith(absent) else None)
        if found is None or found.squeeze().shape != value.squeeze().shape:  # graphs keep some as (C, 1, 1)
            shape = "nothing" if found is None else tuple(found.shape)
            raise Failure(f"{path}: expected {name} of shape {tuple(value.shape)}, found {shape}; use its own preset")
    return {name: weights.get(name, value).reshape(value.shape) for name, value in own.items()}


def _provenance(state: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: state[key] for key in ("data_set", "pictures_seen", "hours", "command", "test_loss", "initialised_from")
    }
    return kept | {key: round(state[key], 4) for key in ("hours", "test_loss") if state[key] is not None}


def graph_weights(graph: Path) -> dict[str, Tensor]:
    """The weights of a float32 graph under the names that the network has for them. Raises `Failure`."""
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(str(graph))
        stored = [i for i in model.graph.initializer if i.data_type in FLOATS]
        weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()).float() for i in stored}
        for entry in model.metadata_props:
            kind, _, name = entry.key.partition(":")
            if kind == SAME:
                weights[name] = weights[entry.value]
            elif kind == CONSTANT:
                constant = json.loads(entry.value)
                weights[name] = torch.full(constant["shape"], constant["value"])
    except Exception as error:  # onnx raises protobuf's own errors here
        raise Failure(f"{graph}: not a readable ONNX file ({type(error).__name__}); take another bundle") from None
    if broken := not_finite(weights):
        raise Failure(f"{graph}: {broken} holds values that are not finite; take another bundle")
    return weights


def dropped_weights(network: nn.Module, stored: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Metadata of a graph on the weights that the exporter dropped from `stored`, so that training can start from it.

    Equal weights were merged: `same as:<dropped>` = `<kept>`. Those of a single value, as biases that are still zero,
    became constants: `constant:<dropped>` = the value and the shape. Others, as a head that only training uses, are no
    part of the guided network.
    """
    notes, flat = {}, {name: array.ravel() for name, array in stored.items()}
    for name, p in network.named_parameters():
        if name in flat:
            continue
        values = p.detach().numpy().ravel()
        kept = next((other for other, array in flat.items() if np.array_equal(array, values)), None)
        if kept is not None:
            notes[f"{SAME}:{name}"] = kept
        elif len(values) and (values == values[0]).all():
            notes[f"{CONSTANT}:{name}"] = json.dumps({"value": float(values[0]), "shape": list(p.shape)})
    return notes
