"""What a run of `cfgdiff-run` draws, picture by picture, and the note from which one of them can be drawn again."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import Variant
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.generate import Blend, Edit
from cfgdiff.runtime.images import cropped
from cfgdiff.runtime.plan import Plan, make_plan
from cfgdiff.runtime.sidecar import graph_digest

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
    """The job of one picture. Raises `Failure` where the note lacks something, or does not belong to what is edited."""
    try:
        settings = {key: note[key] for key in ("seed", "steps", "sampler")} | {key: note[key] for key in PLANNED if key in note}
        settings |= {"interval": tuple(note["interval"])} if "interval" in note else {}
        settings = _acting(settings, [note["guidance"]])
        blend = Blend(note["to"]["seed"], [note["to"]["class"]], [note["to"]["share"]]) if "to" in note else None
        job = Job([note["class"]], [note["index"]], [note["guidance"]], settings, blend, edit, edit_note)
    except (KeyError, TypeError) as error:
        raise Failure(f"--remake: its note lacks {error}; expected a picture of a folder or .tar as written by cfgdiff-run") from None
    if note.get("from") != edit_note:
        raise Failure(f"--remake: was made from {note.get('from') or 'no picture'}, found {edit_note or 'no --from'}; give the same one")
    return job


def _acting(settings: dict[str, Any], guidance: list[float] | None) -> dict[str, Any]:
    """Without what `generate` refuses where no picture is guided: of a job with several w, these may be the pictures of w = 1."""
    idle = {"interval", "rescale"} if guidance is not None and set(guidance) == {1.0} else set()
    return {key: value for key, value in settings.items() if key not in idle}


def digest(bundle: Bundle, precision: str) -> str:
    """Of the graph that an engine of that precision runs."""
    variant: Variant = bundle.variants.get(precision) or bundle.variant("float32")  # bfloat16 is float32's graph
    return graph_digest(variant)


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
    try:
        with Image.open(path) as image:
            return cropped(image, height, width, mode)
    except OSError as error:
        raise Failure(f"{flag} {path}: cannot be read as a picture ({error.strerror or 'unknown format'})") from None


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
