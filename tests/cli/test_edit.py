"""The picture of --from as it is read, and as the note of --remake knows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.edit import check_original, noted_strength, read_edit
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import encoded
from cfgdiff.runtime.notes import edit_note


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)).save(
        tmp_path / "p.png"
    )
    return tmp_path / "p.png"


def test_what_a_picture_was_made_from_is_asked_for_in_words(packaged: Bundle, picture: Path, tmp_path: Path) -> None:
    def noted(*flags: Any) -> tuple[Any, Any]:
        edit = read_edit(packaged, *flags)
        return None if edit is None else edit_note(edit), edit

    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    plain, edited, masked = noted(None, None, None), noted(picture, 0.4, None), noted(picture, 0.4, picture)
    other, louder = noted(tmp_path / "other.png", 0.4, None), noted(picture, 0.7, None)
    for note, given, expected in (
        (edited, plain, r"--remake: was made from a picture, found no --from; give the same one with --from PICTURE$"),
        (masked, plain, r"found no --from; give the same one with --from PICTURE and --mask PICTURE$"),
        (plain, edited, r"--from: the picture of --remake was drawn from noise alone; leave it out"),
        (edited, other, r"--from: the picture of --remake was made with another; give --from as it was then"),
        (edited, masked, r"--mask: the picture of --remake was made without one; give --mask as it was then"),
        (masked, edited, r"--mask: the picture of --remake was made with one, found none; give --mask"),
        (edited, louder, r"--strength: the picture of --remake was made with 0\.4, found 0\.7; leave it out"),
    ):
        with pytest.raises(Failure, match=rf"^{expected}" if expected.startswith("--") else expected) as caught:
            check_original(note[0], given[1])
        assert "{" not in str(caught.value)


def test_the_strength_is_in_the_note(tmp_path: Path) -> None:
    for note, expected in (
        ({"from": {"strength": 0.4}}, 0.4),
        ({"from": {"strength": "x"}}, None),
        ({"from": 5}, None),
        ({}, None),
    ):
        (tmp_path / "a.png").write_bytes(encoded(np.zeros((2, 2, 3), np.uint8), "png", note))
        assert noted_strength(tmp_path / "a.png") == expected


def test_a_moving_picture_gives_its_first_frame_and_says_so(
    packaged: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    edit = read_edit(packaged, tmp_path / "a.gif", None, None)
    assert edit is not None and edit.picture.reshape(-1, 3).tolist() == [[255, 0, 0]] * 1024
    assert caplog.messages == [f"--from {tmp_path / 'a.gif'}: holds 3 pictures; the first is taken"]


def test_sixteen_bits_and_alpha_are_seen_as_they_look(packaged: Bundle, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 33138, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 0.25, np.float32)).save(tmp_path / "float.tif")
    for name, level in (("deep.png", 129), ("clear.png", 255), ("float.tif", 64)):
        edit = read_edit(packaged, tmp_path / name, None, tmp_path / name)
        assert edit is not None and (edit.picture == level).all()
        assert edit.mask is not None and edit.mask.all() == (level > 127)
    Image.fromarray(np.full((32, 32), 70000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(
        Failure, match=r"^--from .*wide\.tif: expected 8 or 16 bits, .* found 32-bit integers of 70000 .. 70000"
    ):
        read_edit(packaged, tmp_path / "wide.tif", None, None)


def test_an_edit_is_read_to_the_models_size(packaged: Bundle, picture: Path, tmp_path: Path) -> None:
    edit = read_edit(packaged, picture, None, None)
    assert edit is not None and edit.picture.shape == (32, 32, 3) and edit.strength == 0.5 and edit.mask is None
    edit = read_edit(packaged, picture, None, picture)
    assert edit is not None and edit.mask is not None and edit.mask.shape == (32, 32) and edit.strength == 1.0
    assert set(edit_note(edit)) == {"picture", "strength", "mask"}
    with pytest.raises(BadInput, match="--mask: is for a picture"):
        read_edit(packaged, None, None, picture)
    with pytest.raises(BadInput, match="--strength: is for a picture"):
        read_edit(packaged, None, 0.5, None)
    (tmp_path / "x.png").write_text("nonsense")
    with pytest.raises(Failure, match=r"--mask .*x\.png: cannot be read as a picture"):
        read_edit(packaged, picture, None, tmp_path / "x.png")
