"""What is written can be read back, and nothing is left where writing fails."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import encoded, grid, psnr, read_note, save_png, to_images, write_whole

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def test_a_grid_has_as_many_columns_as_asked() -> None:
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 4, 4, 3), np.uint8)
    sheet = grid(pictures, pad=1, columns=2)
    assert sheet.shape == (3 * 5 + 1, 2 * 5 + 1, 3)
    assert [int(sheet[y, x, 0]) for y in (1, 6, 11) for x in (1, 6)] == [0, 1, 2, 3, 4, 5]


def test_the_grid_holds_every_picture_in_order() -> None:
    sheet = grid(PICTURES)
    assert sheet.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
    np.testing.assert_array_equal(sheet[2:10, 12:20], PICTURES[1])
    np.testing.assert_array_equal(sheet[12:20, 2:10], PICTURES[3])


def test_psnr_is_that_of_the_pictures() -> None:
    light, dark = np.full((2, 4, 4, 3), 140, np.uint8), np.full((2, 4, 4, 3), 114.5, np.float32)
    assert psnr(light, dark) == pytest.approx(20)  # a tenth of the range
    assert psnr(light, light) == 100


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_become_images_of_pillow(channels: int, mode: str) -> None:
    images = to_images(PICTURES[..., :channels])
    assert [(image.mode, image.size) for image in images] == [(mode, (8, 8))] * 5
    np.testing.assert_array_equal(np.atleast_3d(np.asarray(images[3])), PICTURES[3, ..., :channels])
    for wrong in (PICTURES[0], PICTURES / 255, PICTURES[..., :2]):
        with pytest.raises(BadInput, match=r"^pictures: expected \(N, H, W, 3\) or \(N, H, W, 1\) uint8, found"):
            to_images(wrong)


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_keeps_its_pixels_and_its_note(tmp_path: Path, kind: str, channels: int) -> None:
    note = {"seed": 2**64 - 1, "class": "naïve", "guidance": 1.5}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(PICTURES[0][..., :channels], kind, note))
    with Image.open(path) as image:
        assert image.format == kind.upper()
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(image))[..., :channels], PICTURES[0][..., :channels])
    assert read_note(path) == note


def test_a_picture_without_a_note_says_so(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", PICTURES[0])
    (tmp_path / "b.webp").write_bytes(encoded(PICTURES[0], "webp"))
    (tmp_path / "c.png").write_text("nonsense")
    for name, expected in (("a.png", "says nothing"), ("b.webp", "says nothing"), ("c.png", "cannot be read"), ("d.png", "No such file")):
        with pytest.raises(Failure, match=expected):
            read_note(tmp_path / name)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Failure, match="No space left"):
        write_whole(tmp_path / "a.png", b"picture")
    assert list(tmp_path.iterdir()) == []
