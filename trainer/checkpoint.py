"""Checkpoints: folders of tensors.safetensors (weights, averages, optimisers) and state.json, written atomically.

RUN/checkpoints/NNNNNNNNN is the state after NNNNNNNNN pictures, RUN/checkpoints/before-decay the last one at the full
learning rate.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import (
    partial_file,
    remove_abandoned,
    remove_folder,
    remove_partial,
    replace_folder,
    restore_folder,
    restore_folders,
)  # fmt: skip

from .config import RENAMED_CALLBACKS
from .distributed import cut_like
from .state import check_state, damaged, not_finite, optimiser_states

FORMAT = 1
BEFORE_DECAY = "before-decay"


def has_checkpoint(run: Path) -> bool:
    """Whether there is a run that can be resumed."""
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
    if not (checkpoints := _newest_last(path)):
        raise Failure(f"{path}: no checkpoint there; expected a run or checkpoint folder, as cfgdiff train writes it")
    return checkpoints[-1]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and the tensors of a checkpoint folder or of a run's newest one. Raises `Failure` for damage."""
    folder = find_checkpoint(path)
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        if (version := state["format"]) != FORMAT:
            raise Failure(f"{folder}: checkpoint format {version!r:.20}, expected {FORMAT}: update cfgdiff")
        check_state(state)
        tensors = {_renamed(name): value for name, value in load_file(folder / "tensors.safetensors").items()}
        if name := not_finite(tensors):
            raise ValueError(f"{name} holds values that are not finite")
        return state, tensors
    except Failure:
        raise
    except Exception as error:  # json, safetensors and PyTorch raise a dozen kinds for what is damaged
        raise damaged(folder, error) from None


def write_checkpoint(run: Path, name: str, state: dict[str, Any], tensors: dict[str, Tensor], keep: int = 1) -> None:
    """Write RUN/checkpoints/`name` atomically, then remove all but the `keep` newest. Raises `Failure`."""
    root = run / "checkpoints"
    remove_partial(root)  # of a process that was killed
    if name.isdigit() and (root / name).exists():  # the same pictures seen, so the same tensors: only the state is new
        write_run_file(root / name / "state.json", _state_json(state), run)
    else:
        write_folder(root / name, state, tensors)
    if name.isdigit():
        checkpoints = sorted(root.glob("[0-9]*"))
        later = [folder for folder in checkpoints if folder.name > name]  # of a run resumed from before its decay
        earlier = checkpoints[: len(checkpoints) - len(later)]
        for old in later[::-1] + earlier[:-keep]:  # the newest first: after a kill the run is resumed from it
            remove_folder(old)


def write_folder(final: Path, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write one checkpoint folder atomically. Raises `Failure`."""
    try:
        with replace_folder(final) as folder:
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_bytes(_state_json(state))
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{final}: cannot be written ({reason}); earlier checkpoints are untouched") from None


def _state_json(state: dict[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT} | state, indent=1).encode()


def write_run_file(file: Path, data: bytes, run: Path) -> None:
    """Write a file in the folder of a run atomically. Raises `Failure`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(file)
        with partial_file(file) as partial:
            partial.write(data)
    except OSError as error:
        raise cannot_write(file, error, run) from None


def cannot_write(file: Path, error: OSError, run: Path) -> Failure:
    """The line about a file of a run that cannot be written."""
    return Failure(f"{file}: cannot be written ({error.strerror or error}); make room, then resume {run}")


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
        states = optimiser_states(optimiser, tensors_under(f"optimiser.{i}", tensors))
        params = [p for group in optimiser.param_groups for p in group["params"]]
        for p, entries in states.items():
            entries |= {
                key: cut_like(value.to(params[p].device), params[p])
                for key, value in sorted(entries.items())
                if value.shape == params[p].shape
            }
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _renamed(name: str) -> str:
    """The name of a tensor, with the present name of the callback that it belongs to."""
    kind, _, rest = name.partition(".")
    callback, _, key = rest.partition(".")
    return (
        f"{kind}.{RENAMED_CALLBACKS[callback]}.{key}" if kind == "callback" and callback in RENAMED_CALLBACKS else name
    )
