"""What a checkpoint must hold: the keys of state.json, and tensors of the right names, shapes and finite values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from cfgdiff.runtime.errors import BadInput, Failure

from .config import LARGEST, make_config
from .optim import Muon

Count = Annotated[int, Field(ge=0, le=LARGEST)]
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}  # of torch.amp.GradScaler
# The state that each keeps for a parameter; the optimisers of plugins are not checked.
OPTIMISER_KEYS: dict[type, set[str]] = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum"}}


class State(BaseModel):
    """state.json. `data` is the absolute path or the name of the data set; early checkpoints have none."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    config: dict[str, Any]
    class_names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=3, max_length=3)]
    data_set: str
    command: str
    step: Count
    pictures_seen: Count
    hours: Annotated[float, Field(ge=0, le=1e9)]
    test_loss: float | None
    initialised_from: dict[str, Any] | None
    decaying: bool
    scaler: dict[str, float]
    data: str | None = None

    @field_validator("config")
    @classmethod
    def _config_is_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            make_config(value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("scaler")
    @classmethod
    def _scaler_is_whole(cls, value: dict[str, float]) -> dict[str, float]:
        if value and value.keys() != SCALER:
            raise ValueError(f"must have {', '.join(sorted(SCALER))}")
        return value


def damaged(folder: Path, reason: object) -> Failure:
    """The line about a checkpoint folder that cannot be used."""
    line = " ".join(str(reason).split()) or type(reason).__name__
    return Failure(f"{folder}: damaged checkpoint ({line:.200}); remove this folder to continue from an earlier one")


def check_state(tree: Any) -> None:
    """Raises `ValueError` with one line where this is not what state.json must hold."""
    try:
        State.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        problem = f"{first['msg']}, found {first['input']!r:.60}"
        if first["type"] in ("value_error", "missing"):
            problem = "is missing" if first["type"] == "missing" else str(first["ctx"]["error"])
        raise ValueError(f"state.json: {where}: {problem}") from None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity, if there is one; callbacks may keep an infinity."""
    for name, value in tensors.items():
        if value.is_floating_point():
            right = ~value.isnan() if name.startswith("callback.") else value.isfinite()
            if not right.all():
                return name
    return None


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raises `ValueError` where names, shapes or kinds of numbers differ."""
    if strange := sorted(given.keys() ^ expected.keys()):
        raise ValueError(f"{prefix}{strange[0]} {'is missing' if strange[0] in expected else 'is of another network'}")
    for name, value in expected.items():
        if given[name].shape != value.shape or given[name].is_floating_point() != value.is_floating_point():
            was, wanted = f"{tuple(given[name].shape)} {given[name].dtype}", f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(f"{prefix}{name}: expected {wanted}, found {was}")


def optimiser_states(optimiser: torch.optim.Optimizer, given: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """`<parameter>.<key>` -> {parameter: {key: value}}. Raises `ValueError` for the state of another optimiser."""
    params = [p for group in optimiser.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in given.items():
        which, _, key = name.partition(".")
        if not which.isdecimal() or int(which) >= len(params):
            raise ValueError(f"{name}: the optimiser has no such parameter")
        states.setdefault(int(which), {})[key] = value
    if (keys := OPTIMISER_KEYS.get(type(optimiser))) is None:
        return states
    for p, entries in states.items():
        wanted = {key: torch.zeros(()) if key == "step" else params[p] for key in keys}
        check_tensors(entries, wanted, f"parameter {p} of the optimiser: ")
    return states
