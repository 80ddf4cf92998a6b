"""What a run of `cfgdiff-run` draws, picture by picture, and the note from which one of them can be drawn again."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.engines import computed_variant
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.generate import Blend, Edit
from cfgdiff.runtime.images import cropped, frames, load_picture, read_note
from cfgdiff.runtime.plan import Plan, make_plan
from cfgdiff.runtime.sidecar import graph_digest

from .flags import MOST_STEPS

log = logging.getLogger("cfgdiff")
PLANNED = ("sampler", "steps", "spacing", "timesteps", "eta", "interval", "rescale", "threshold")


@dataclass(frozen=True)
class Job:
    """N pictures: their classes, numbers and guidance, and what `generate` is told of all of them.

    Attributes:
        guidance: one for each picture; None: the model's.
        settings: arguments of `generate` beside these, `PLANNED` and the seed.
        edit_note: what the notes say of `edit`.
    """

    classes: list[str]
    indices: list[int]
    guidance: list[float] | None
    settings: dict[str, Any]
    blend: Blend | None = None
    edit: Edit | None = None
    edit_note: dict[str, Any] | None = None

    def plan(self, bundle: Bundle) -> Plan:
        """See `make_plan`."""
        chosen = {key: self.settings[key] for key in PLANNED if key in self.settings}
        return make_plan(bundle, guidance=self.guidance, strength=self.edit.strength if self.edit else 1.0, **chosen)

    def arguments(self, positions: list[int]) -> dict[str, Any]:
        """Those of `generate` for these pictures of the job."""
        blend = self.blend
        if blend:
            blend = Blend(blend.seed, [blend.classes[i] for i in positions], [blend.shares[i] for i in positions])
        guidance = None if self.guidance is None else [self.guidance[i] for i in positions]
        settings = _acting(self.settings, guidance) if self.guidance and set(self.guidance) != {1.0} else self.settings
        return settings | {
            "classes": [self.classes[i] for i in positions], "indices": [self.indices[i] for i in positions],
            "guidance": guidance, "blend": blend, "edit": self.edit,
        }  # fmt: skip

    def note(self, i: int, plan: Plan) -> dict[str, Any]:
        """All that picture i depends on, but for the model and the engine."""
        told = {"spacing": plan.spacing if self.settings.get("spacing") else None, "interval": plan.guidance.interval}
        told |= {key: self.settings.get(key) for key in ("timesteps", "eta", "rescale", "threshold")}
        note = {
            "class": self.classes[i], "index": self.indices[i], "seed": self.settings["seed"], "steps": plan.asked,
            "guidance": plan.guidance.weights[i % len(plan.guidance.weights)], "sampler": plan.sampler,
        }  # fmt: skip
        note |= {key: value for key, value in told.items() if value}
        if self.blend:
            note["to"] = {"class": self.blend.classes[i], "seed": self.blend.seed, "share": self.blend.shares[i]}
        return note | ({"from": self.edit_note} if self.edit_note else {})


def from_note(note: dict[str, Any], edit: Edit | None, edit_note: dict[str, Any] | None) -> Job:
    """The job of one picture. Raises `Failure` where the note lacks something or says nonsense, or does not belong to what is edited."""
    if missing := {"class", "index", "seed", "steps", "sampler", "guidance"} - note.keys():
        what = f"lacks '{max(missing)}'"
    elif wrong := [key for key, right in NOTED.items() if key in note and not right(note[key])]:
        what = f"says {wrong[0]} is {json.dumps(note[wrong[0]])[:40]}"
    else:
        settings = {"seed": note["seed"]} | {key: note[key] for key in PLANNED if key in note}
        settings |= {"interval": tuple(note["interval"])} if "interval" in note else {}
        settings = _acting(settings, [note["guidance"]])
        blend = Blend(note["to"]["seed"], [note["to"]["class"]], [note["to"]["share"]]) if "to" in note else None
        _check_original(note.get("from"), edit_note)
        return Job([note["class"]], [note["index"]], [note["guidance"]], settings, blend, edit, edit_note)
    raise Failure(f"--remake: its note {what}; expected a picture of a folder or .tar as written by cfgdiff-run")


def _integer(below: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < below


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < (2**53 if isinstance(value, int) else 1e30)  # nor NaN


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) <= MOST_STEPS and all(map(_number, value))


def _interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_number(bound) or bound == inf for bound in value)


ENDS: dict[str, Callable[[Any], bool]] = {"class": _word, "seed": _integer(2**64), "share": _number}
# How each entry of a note must be. What an unknown word or a number out of range means is left to those who take it.
NOTED: dict[str, Callable[[Any], bool]] = {
    "class": _word, "index": _integer(2**63), "seed": _integer(2**64), "steps": _integer(MOST_STEPS + 1, 1), "sampler": _word,
    "guidance": _number, "spacing": _word, "eta": _number, "rescale": _number, "threshold": _number, "timesteps": _numbers,
    "interval": _interval,
    "to": lambda value: isinstance(value, dict) and all(right(value.get(key)) for key, right in ENDS.items()),
}  # fmt: skip


def noted_strength(file: Path) -> float | None:
    """That with which the picture in `file` was made from another; None where its note does not say."""
    original = read_note(file).get("from")
    strength = original.get("strength") if isinstance(original, dict) else None
    return strength if _number(strength) else None


def _check_original(noted: Any, given: dict[str, Any] | None) -> None:
    """Raises `Failure` where a picture was made from another than is given, or from none."""
    if noted == given:
        return
    if given is None:
        mask = " and --mask PICTURE" if isinstance(noted, dict) and "mask" in noted else ""
        raise Failure(f"--remake: was made from a picture, found no --from; give the same one with --from PICTURE{mask}")
    if not isinstance(noted, dict):
        raise Failure("--from: the picture of --remake was drawn from noise alone; leave it out")
    key = next((key for key in ("picture", "mask", "strength") if noted.get(key) != given.get(key)), "picture")
    if key == "strength":
        raise Failure(f"--strength: the picture of --remake was made with {noted.get(key)}, found {given.get(key)}; leave it out")
    flag = {"picture": "--from", "mask": "--mask"}[key]
    was = "with another" if key in noted and key in given else "with one, found none" if key in noted else "without one"
    raise Failure(f"{flag}: the picture of --remake was made {was}; give {flag} as it was then")


def _acting(settings: dict[str, Any], guidance: list[float] | None) -> dict[str, Any]:
    """Without what `generate` refuses where no picture is guided: of a job with several w, these may be the pictures of w = 1."""
    idle = {"interval", "rescale"} if guidance is not None and set(guidance) == {1.0} else set()
    return {key: value for key, value in settings.items() if key not in idle}


def digest(bundle: Bundle, precision: str) -> str:
    """Of the graph that an engine of that precision runs."""
    return graph_digest(computed_variant(bundle, precision))


def read_edit(bundle: Bundle, picture: Path | None, strength: float | None, mask: Path | None) -> tuple[Edit | None, dict[str, Any] | None]:
    """What --from, --strength and --mask say, and the note of it. Raises `BadInput` or `Failure`, naming the flag."""
    if picture is None:
        for flag, value in (("--strength", strength), ("--mask", mask)):
            if value is not None:
                raise BadInput(f"{flag}: is for a picture, found no --from; add --from PICTURE")
        return None, None
    c, h, w = bundle.image_shape
    share = (1.0 if mask else 0.5) if strength is None else strength
    drawn = None if mask is None else _read("--mask", mask, h, w, "L")[..., 0] > 127
    edit = Edit(_read("--from", picture, h, w, "RGB" if c == 3 else "L"), share, drawn)
    note: dict[str, Any] = {"picture": _hash(edit.picture), "strength": share}
    return edit, note | ({} if drawn is None else {"mask": _hash(drawn)})


def _read(flag: str, path: Path, height: int, width: int, mode: str) -> np.ndarray:
    image = load_picture(path, f"{flag} {path}")
    if (n := frames(image)) > 1:
        log.warning("%s %s: holds %d pictures; the first is taken", flag, path, n)
    return cropped(image, height, width, mode, f"{flag} {path}")


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
