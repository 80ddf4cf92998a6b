"""The note in a picture: all that it depends on, from which it can be drawn again. It knows no files."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .bundle import Bundle
from .cascade import stage_engines
from .engine import Engine
from .engines import computed_variant
from .errors import Failure
from .plan import MOST_STEPS, Plan
from .request import Blend, Edit, Request, Stage
from .sidecar import graph_digest

MOST_STAGES = 16
# The entries that may be absent; they are fields of a request.
OPTIONAL = ("spacing", "timesteps", "eta", "interval", "rescale", "threshold")


def note_of(plan: Plan, i: int) -> dict[str, Any]:
    """The note of picture i of a plan, without the model and the engine; see `model_note`."""
    request, names, interval = plan.request, plan.bundle.class_names, plan.guidance.interval
    if request.interval is not None:  # asked for everywhere: another model's default may be narrower
        interval = plan.guidance.limits
    optional = {
        "spacing": plan.course.spacing if request.spacing else None, "interval": interval,
        "timesteps": None if request.timesteps is None else [float(t) for t in request.timesteps],
        "eta": float(request.eta), "rescale": float(request.rescale), "threshold": request.threshold,
    }  # fmt: skip
    note: dict[str, Any] = {
        "class": names[plan.labels[i]], "index": int(plan.indices[i]), "seed": int(plan.seeds[i]),
        "steps": plan.course.evaluations, "guidance": float(plan.weights[i]), "sampler": plan.course.sampler,
    }  # fmt: skip
    note |= {name: value for name, value in optional.items() if value}
    if plan.end is not None:
        label, seed, share = (array[i] for array in plan.end)
        note["to"] = {"class": names[label], "seed": int(seed), "share": float(share)}
    if plan.stages:
        note["stages"] = [_stage_note(stage, i) for stage in plan.stages]
    return note if request.edit is None else note | {"from": edit_note(request.edit)}


def _stage_note(plan: Plan, i: int) -> dict[str, Any]:
    """What notes say of one super-resolution stage of picture i: the fields of a `Stage`."""
    known, noise = plan.bundle.condition, plan.request.condition_noise
    assert known is not None
    note: dict[str, Any] = {
        "steps": plan.course.evaluations, "guidance": float(plan.weights[i]), "sampler": plan.course.sampler,
        "noise": float(known.noise if noise is None else noise),
    }  # fmt: skip
    interval = plan.guidance.limits if plan.request.interval is not None else plan.guidance.interval
    return note if not interval else note | {"interval": interval}


def edit_note(edit: Edit) -> dict[str, Any]:
    """What notes say of an edit: digests of its arrays, and its strength."""
    note: dict[str, Any] = {"picture": _digest(edit.picture), "strength": edit.strength}
    return note if edit.mask is None else note | {"mask": _digest(edit.mask)}


def model_note(bundle: Bundle, engine: Engine) -> dict[str, Any]:
    """What notes say of the model and the engine; in a cascade, of all of them."""
    note: dict[str, Any] = {"model": bundle.name} | _made_by(bundle, engine)
    if bundle.stages:
        both = zip(bundle.stages, stage_engines(engine, bundle.stages), strict=True)
        note["stage_models"] = [_made_by(stage, stage_engine) for stage, stage_engine in both]
    return note


def _made_by(bundle: Bundle, engine: Engine) -> dict[str, str]:
    digest = model_digest(bundle, engine.precision)
    return {"model_sha256": digest, "engine": engine.name, "precision": engine.precision}


def model_digest(bundle: Bundle, precision: str) -> str:
    """The digest of the graph that an engine of that precision runs."""
    return graph_digest(computed_variant(bundle, precision))


def request_of(note: dict[str, Any], edit: Edit | None = None) -> Request:
    """The request of one picture, from its note and the edit that the note is of.

    Raises:
        Failure: the note lacks an entry, or holds one of the wrong kind.
    """
    if missing := {"class", "index", "seed", "steps", "sampler", "guidance"} - note.keys():
        problem = f"expected an entry '{max(missing)}' in the note, found none"
    elif wrong := [name for name, right in ENTRIES.items() if name in note and not right(note[name])]:
        problem = f"expected another '{wrong[0]}' in the note, found {json.dumps(note[wrong[0]])[:40]}"
    else:
        optional = {name: note[name] for name in OPTIONAL if name in note}
        if note["guidance"] == 1:  # the limits were for other pictures of its run; alone it would be refused with them
            optional = {name: value for name, value in optional.items() if name not in ("interval", "rescale")}
        end = note.get("to")
        blend = Blend(end["seed"], [end["class"]], [end["share"]]) if end else None
        stages = [_stage_of(entry) for entry in note.get("stages", ())]
        return Request(
            [note["class"]], note["steps"], [note["guidance"]], note["seed"], note["sampler"], indices=[note["index"]],
            blend=blend, edit=edit, batch=1, stages=stages, **optional,
        )  # fmt: skip
    raise Failure(f"note: {problem}; take a picture of a folder or .tar as written by cfgdiff-run")


def _stage_of(note: dict[str, Any]) -> Stage:
    """What a request asks of a stage, from its note; limits of what is not guided would be refused."""
    return Stage(**{name: value for name, value in note.items() if name != "interval" or note.get("guidance") != 1})


def _integer(below: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < below


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number that float64 holds, and not NaN."""
    return type(value) in (int, float) and abs(value) < (2**53 if isinstance(value, int) else 1e30)


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= MOST_STEPS and all(map(is_number, value))


def _interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(v) or v == math.inf for v in value)


def _stages(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_STAGES and all(map(_stage, value))


def _stage(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() <= STAGE.keys() and all(STAGE[k](v) for k, v in value.items())


END: dict[str, Callable[[Any], bool]] = {"class": _word, "seed": _integer(2**64), "share": is_number}
STAGE: dict[str, Callable[[Any], bool]] = {
    "steps": _integer(MOST_STEPS + 1, 1), "guidance": is_number, "sampler": _word, "interval": _interval,
    "noise": is_number,
}  # fmt: skip
# How each entry must be. Unknown words and numbers out of range are left to `resolve`.
ENTRIES: dict[str, Callable[[Any], bool]] = {
    "class": _word, "index": _integer(2**63), "seed": _integer(2**64), "steps": _integer(MOST_STEPS + 1, 1),
    "sampler": _word, "guidance": is_number, "spacing": _word, "eta": is_number, "rescale": is_number,
    "threshold": is_number, "timesteps": _numbers, "interval": _interval, "stages": _stages,
    "to": lambda value: isinstance(value, dict) and all(right(value.get(name)) for name, right in END.items()),
}  # fmt: skip


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
