"""Checkpoints: a folder with tensors.safetensors (weights, averaged weights, optimiser) and state.json; written whole or not at all.

RUN/checkpoints/NNNNNNNNN is the newest state after NNNNNNNNN pictures, RUN/checkpoints/before-decay the last one at the full rate.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import remove_folder, remove_partial, replace_folder, restore_folder, restore_folders
from cfgdiff.runtime.schedule import Schedule

from . import registry
from .config import OWN_NETWORKS, Config, make_config
from .distributed import cut_like
from .objective import LearnedWeight
from .state import check_state, check_tensors, damaged, not_finite, optimiser_states

FORMAT = 1
BEFORE_DECAY = "before-decay"


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in float32 with its averaged weights, and all that describes it."""

    network: nn.Module
    config: Config
    class_names: list[str]
    image_shape: tuple[int, int, int]
    schedule: Schedule
    provenance: dict[str, Any]


def has_checkpoint(run: Path) -> bool:
    """Whether a run that can be resumed is there."""
    return bool(_newest_last(run))


def _newest_last(run: Path) -> list[Path]:
    return sorted(p for p in (run / "checkpoints").glob("[0-9]*") if (p / "state.json").is_file())


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the newest of a run. Raises `Failure` where there is none."""
    with suppress(OSError):  # where nothing can be renamed, what is there is taken
        restore_folder(path)
        restore_folders(path / "checkpoints")
    if (path / "state.json").is_file():
        return path
    if not (found := _newest_last(path)):
        raise Failure(f"{path}: no checkpoint there; expected a run folder or a checkpoint folder as written by cfgdiff train")
    return found[-1]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and the tensors of a checkpoint folder or of a run's newest one. Raises `Failure` for damage."""
    folder = find_checkpoint(path)
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        if (found := state["format"]) != FORMAT:
            raise Failure(f"{folder}: checkpoint format {found!r:.20}, expected {FORMAT}: update cfgdiff")
        check_state(state)
        tensors = load_file(folder / "tensors.safetensors")
        if name := not_finite(tensors):
            raise ValueError(f"{name} holds values that are not finite")
        return state, tensors
    except Failure:
        raise
    except Exception as error:  # json, safetensors and PyTorch raise a dozen kinds for what is damaged
        raise damaged(folder, error) from None


def write_checkpoint(run: Path, name: str, state: dict[str, Any], tensors: dict[str, Tensor], keep: int = 1) -> None:
    """Write RUN/checkpoints/`name` whole, then remove all but the `keep` newest. Raises `Failure` where it cannot be written."""
    root = run / "checkpoints"
    remove_partial(root)  # of a process that was killed
    if name.isdigit() and (root / name).exists():  # the same pictures seen, so the same tensors: only the state is new
        replace_text(root / name / "state.json", json.dumps({"format": FORMAT} | state, indent=1))
    else:
        write_folder(root / name, state, tensors)
    if name.isdigit():
        found = sorted(root.glob("[0-9]*"))
        later = [folder for folder in found if folder.name > name]  # of a run that now goes on from before its decay
        for old in later[::-1] + found[: len(found) - len(later)][:-keep]:  # the newest first: after a kill the run goes on from it
            remove_folder(old)


def write_folder(final: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write one checkpoint folder whole, or leave what was there. Raises `Failure`."""
    try:
        with replace_folder(final) as folder:
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps({"format": FORMAT} | state, indent=1))
    except OSError as error:
        raise Failure(f"{final}: cannot write the checkpoint ({error.strerror or error}); earlier checkpoints are untouched") from None


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all. Raises `Failure`."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(file)
    except OSError as error:
        raise Failure(f"{file}: cannot be written ({error.strerror or error}); what was there is untouched") from None


def optimiser_tensors(optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' states as flat tensors, `optimiser.<which>.<parameter>.<key>`."""
    return {
        f"optimiser.{i}.{p}.{key}": value
        for i, optimiser in enumerate(optimisers)
        for p, entries in optimiser.state_dict()["state"].items()
        for key, value in entries.items()
    }


def restore_optimisers(optimisers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`, in place. Raises `ValueError` for tensors that are not theirs."""
    for i, optimiser in enumerate(optimisers):
        states = optimiser_states(optimiser, network_tensors(tensors, f"optimiser.{i}"))
        params = [p for group in optimiser.param_groups for p in group["params"]]
        for p, entries in states.items():
            entries |= {
                key: cut_like(value.to(params[p].device), params[p])
                for key, value in sorted(entries.items())
                if value.shape == params[p].shape
            }
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def network_tensors(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def make_network(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The untrained network of a config. Raises `BadInput` for an unknown name or option, `Failure` for pictures that do not fit it."""
    part = config.network
    factor = part.patch * 2 ** (len(part.multipliers) - 1)
    if part.name in OWN_NETWORKS and (image_shape[1] % factor or image_shape[2] % factor):
        wanted, found = f"sides that are multiples of {factor}", f"{image_shape[2]}x{image_shape[1]}"
        raise Failure(f"this network takes pictures with {wanted}, found {found}; change train.image_size or network.multipliers")
    network: nn.Module = registry.bound("network", part.name, part.options)(part, image_shape, num_classes)
    if config.objective.weighting == "learned":
        network.loss_weight = LearnedWeight()
    return network


def load_model(path: Path) -> LoadedModel:
    """The averaged weights of a checkpoint or run as a network ready for use. Raises `Failure`."""
    state, tensors = read_checkpoint(path)
    config = make_config(state["config"])
    shape: tuple[int, int, int] = tuple(state["image_shape"])
    network = make_network(config, shape, len(state["class_names"]))
    averaged = network_tensors(tensors, "ema")
    try:
        check_tensors(averaged, network.state_dict(), "ema.")
    except ValueError as error:
        raise damaged(find_checkpoint(path), error) from None
    network.load_state_dict(averaged)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, state["class_names"], shape, config.schedule, _provenance(state))


def _provenance(state: dict[str, Any]) -> dict[str, Any]:
    found = {key: state[key] for key in ("data_set", "pictures_seen", "hours", "command", "test_loss", "initialised_from")}
    return found | {key: round(state[key], 4) for key in ("hours", "test_loss") if state[key] is not None}


def origin(path: Path) -> dict[str, Any]:
    """What the training behind `initial_weights` was, as bundles say it: pictures, hours, command; and what that one started from."""
    described = path / "bundle.json"
    if not (path / "model.onnx").is_file():
        return _provenance(read_checkpoint(path)[0])
    try:
        return {key: value for key, value in json.loads(described.read_bytes())["provenance"].items() if key != "errors"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Failure(f"--init {described}: does not say where the weights come from; take a bundle that cfgdiff export wrote") from None


def initial_weights(path: Path) -> dict[str, Tensor]:
    """Weights to start from: the averaged ones of a checkpoint or run, or a bundle's float32 graph. Raises `Failure`."""
    graph = path / "model.onnx"
    if not graph.is_file():
        return network_tensors(read_checkpoint(path)[1], "ema")
    import onnx
    from onnx import numpy_helper

    if (path / "bundle.json").is_file():
        load_bundle(path)  # checks the hashes, and that all weights have one
    try:
        model = onnx.load(str(graph))
        kept = [i for i in model.graph.initializer if i.data_type in (1, 10)]
        weights = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()).float() for i in kept}
        for entry in model.metadata_props:  # what the exporter dropped, see `export.graph`
            kind, _, name = entry.key.partition(":")
            if kind == "same as":
                weights[name] = weights[entry.value]
            elif kind == "constant":
                constant = json.loads(entry.value)
                weights[name] = torch.full(constant["shape"], constant["value"])
    except Exception as error:  # onnx raises protobuf's own errors here
        raise Failure(f"--init {graph}: not a readable ONNX file ({type(error).__name__}); take another bundle") from None
    if broken := not_finite(weights):
        raise Failure(f"--init {graph}: {broken} holds values that are not finite; take another bundle")
    return weights
