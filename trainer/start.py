"""How a run starts if not from scratch: from the weights of another model, or where a checkpoint left it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from cfgdiff.runtime.errors import Failure

from .build import new_run
from .checkpoint import BEFORE_DECAY, find_checkpoint, read_checkpoint, restore_optimisers, tensors_under
from .config import BadSetting, Config
from .data import PictureSet
from .distributed import Processes, copy_gathered
from .run import Run
from .state import check_tensors, damaged
from .weights import initial_weights, matched


def start_from(run: Run, path: Path) -> None:
    """Give a new run the weights of a checkpoint, run or bundle. Raises `Failure` for those of another network."""
    weights, provenance = initial_weights(path)
    weights = matched(weights, run.network, path)
    for network in (run.network, run.ema.network):
        copy_gathered(network.state_dict(), weights)
    run.initialised_from = provenance


def resume(
    out: Path,
    overrides: Callable[[dict[str, Any]], Config],
    load: Callable[[Config], PictureSet],
    command: str,
    max_minutes: float | None,
    processes: Processes | None = None,
    data_path: str | None = None,
) -> Run:
    """A run as its newest checkpoint left it; from before its decay if it is to see more pictures than it was made for.

    Args:
        overrides: the new config, from the nested dictionaries of the old one.
        load: reads the data of a config.
        data_path: where they lie, if not where they did.
    """
    folder, earlier = find_checkpoint(out), out / "checkpoints" / BEFORE_DECAY
    state, tensors = read_checkpoint(folder)
    config, made_for = overrides(state["config"]), Config.model_validate(state["config"])
    if config.network != made_for.network:
        raise BadSetting("network: the network of a run cannot change; start a new run")
    if config.train.pictures > made_for.train.pictures and state["decaying"] and earlier.is_dir():
        folder, (state, tensors) = earlier, read_checkpoint(earlier)
    data = load(config)
    _check_same(data, state, out)
    commands, data_path = f"{state['command']}; {command}", data_path or state.get("data")
    run = new_run(config, data, out, commands, max_minutes, processes, data_path)
    _restore(run, state, tensors, folder)
    return run


def _restore(run: Run, state: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Continue where the checkpoint in `folder` was written. Raises `Failure` for tensors of another network."""
    try:
        for prefix, network in (("network", run.network), ("ema", run.ema.network)):
            kept = tensors_under(prefix, tensors)
            check_tensors(kept, network.state_dict(), f"{prefix}.")
            copy_gathered(network.state_dict(), kept)
        restore_optimisers(run.optimisers, tensors)
    except ValueError as error:
        raise damaged(folder, error) from None
    run.step, run.pictures_seen, run.seconds = state["step"], state["pictures_seen"], state["hours"] * 3600
    run.initialised_from, run.before_decay = state["initialised_from"], state["decaying"]
    run.before_decay = run.decaying  # no longer, where the run is now so much longer that it has yet to begin
    if state["scaler"]:
        run.scaler.load_state_dict(state["scaler"])
    run.resumed = folder, {name: value for name, value in tensors.items() if name.startswith("callback.")}


def _check_same(data: PictureSet, state: dict[str, Any], out: Path) -> None:
    """Raises `Failure` where the data are not of the classes and shape that the run was trained on."""
    shape = list(data.pictures.shape[1:])
    for kind, new, old in (("classes", data.class_names, state["class_names"]), ("shape", shape, state["image_shape"])):
        if new != old:
            has, had = (", ".join(map(str, value)) for value in (new, old))
            remedy = "use the data it was trained on"
            raise Failure(f"data set '{data.name}' has the {kind} {has:.200}; the run {out} has {had:.200}; {remedy}")
