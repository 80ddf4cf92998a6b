"""The picture that --from names: read, and compared with that in the note of --remake."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import packaged_models
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import cropped, frames, load_picture, read_note
from cfgdiff.runtime.notes import edit_note, is_number
from cfgdiff.runtime.request import Edit

log = logging.getLogger("cfgdiff")


def read_edit(bundle: Bundle, picture: Path | None, strength: float | None, mask: Path | None) -> Edit | None:
    """What --from, --strength and --mask ask for. Raises `BadInput` or `Failure`, naming the flag."""
    if picture is None:
        for flag, value in (("--strength", strength), ("--mask", mask)):
            if value is not None:
                raise BadInput(f"{flag}: is for a picture, found no --from; add --from PICTURE")
        return None
    c, h, w = bundle.image_shape
    share = (1.0 if mask else 0.5) if strength is None else strength
    drawn = None if mask is None else _read("--mask", mask, h, w, "L")[..., 0] > 127
    return Edit(_read("--from", picture, h, w, "RGB" if c == 3 else "L"), share, drawn)


def noted_strength(file: Path) -> float | None:
    """The strength with which the picture in `file` was made from another; None where its note has none."""
    original = read_note(file).get("from")
    strength = original.get("strength") if isinstance(original, dict) else None
    return strength if is_number(strength) else None


def noted_model(file: Path) -> str | None:
    """The packaged model that drew the picture in `file`, by its note; None where it was another."""
    name = read_note(file).get("model")
    return name if name in packaged_models() else None


def check_original(noted: Any, edit: Edit | None) -> None:
    """Raises `Failure` where the note says that a picture was made from another than `edit`, or from none."""
    given = None if edit is None else edit_note(edit)
    if noted == given:
        return
    if given is None:
        mask = " and --mask PICTURE" if isinstance(noted, dict) and "mask" in noted else ""
        raise Failure(
            f"--remake: was made from a picture, found no --from; give the same one with --from PICTURE{mask}"
        )
    if not isinstance(noted, dict):
        raise Failure("--from: the picture of --remake was drawn from noise alone; leave it out")
    key = next((key for key in ("picture", "mask", "strength") if noted.get(key) != given.get(key)), "picture")
    if key == "strength":
        strengths = f"{noted.get(key)}, found {given.get(key)}"
        raise Failure(f"--strength: the picture of --remake was made with {strengths}; leave it out")
    flag = {"picture": "--from", "mask": "--mask"}[key]
    was = "with another" if key in noted and key in given else "with one, found none" if key in noted else "without one"
    raise Failure(f"{flag}: the picture of --remake was made {was}; give {flag} as it was then")


def _read(flag: str, path: Path, height: int, width: int, mode: str) -> np.ndarray:
    image = load_picture(path, f"{flag} {path}")
    if (n := frames(image)) > 1:
        log.warning("%s %s: holds %d pictures; the first is taken", flag, path, n)
    return cropped(image, height, width, mode, f"{flag} {path}")
