"""What is written can be read back, and nothing is left where writing fails."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import (
    cropped,
    encoded,
    frames,
    grid,
    load_picture,
    psnr,
    read_note,
    read_rgb,
    save_png,
    to_images,
)

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
    for name, expected in (
        ("a.png", "has no note"),
        ("b.webp", "has no note"),
        ("c.png", "cannot be read"),
        ("d.png", "No such file"),
    ):
        with pytest.raises(Failure, match=expected):
            read_note(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(text, kind) for text in ("5", "null", "NaN", "[]", "{", "[" * 50_000, "") for kind in ("png", "webp")],
)
def test_a_note_that_is_none_says_so(tmp_path: Path, text: str, kind: str) -> None:
    info, exif = PngInfo(), Image.Exif()
    info.add_text("cfgdiff", text)
    exif[0x010E] = text
    more = {"pnginfo": info} if kind == "png" else {"exif": exif.tobytes()}
    Image.new("RGB", (2, 2)).save(tmp_path / f"a.{kind}", **more)
    with pytest.raises(Failure, match=r"has no note of how it was made"):
        read_note(tmp_path / f"a.{kind}")


def test_bombs_pipes_and_ruins_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = PngInfo()
    bomb.add_text("cfgdiff", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "text.png", pnginfo=bomb)
    Image.new("RGB", (2, 2)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "chunk.png").write_bytes(data.replace(b"IDAT", b"I\x00AT"))
    (tmp_path / "short.png").write_bytes(data[:44])
    for name, side in (("warned.png", 12), ("refused.png", 20)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, expected in (
        ("text.png", "Decompressed data too large"), ("chunk.png", ""), ("short.png", ""),
        ("warned.png", "decompression bomb"),
        ("refused.png", "decompression bomb"), ("pipe.png", "no regular file"), ("", "no regular file"),
        ("x.png", "No such file"),
    ):  # fmt: skip
        with pytest.raises(Failure, match=rf"^--from {name}: cannot be read as a picture \(.*{expected}") as caught:
            load_picture(tmp_path / name, f"--from {name}")
        assert "\n" not in str(caught.value)


def test_frames_are_counted(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    for name, count in (("a.gif", 2), ("a.tif", 2), ("a.png", 2), ("a.mpo", 1), ("one.gif", 1)):
        first.save(
            tmp_path / name,
            save_all=not name.startswith("one"),
            **({} if name == "one.gif" else {"append_images": [second]}),
        )
        image = load_picture(tmp_path / name, name)
        assert frames(image) == count and np.asarray(read_rgb(image, name))[0, 0].tolist()[0] >= 250  # the first


def test_a_jpeg_keeps_its_note(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 8 * 8 * 3).astype(np.uint8).reshape(8, 8, 3)
    (tmp_path / "a.jpg").write_bytes(encoded(smooth, "jpg", {"seed": 2**64 - 1}))
    image = load_picture(tmp_path / "a.jpg", "a.jpg")
    assert image.format == "JPEG" and np.abs(np.asarray(image).astype(int) - smooth).max() < 20
    assert read_note(tmp_path / "a.jpg") == {"seed": 2**64 - 1}


RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)  # (8, 8)
RGB = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)  # (8, 8, 3)


def stored(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """`image` as it is opened from a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), "PPM"),  # Pillow opens it as I
        (Image.fromarray((RAMP / 255).astype(np.float32)), "TIFF"),
        (Image.fromarray(RAMP), "PNG"),
        (Image.fromarray(RGB), "PNG"),
        (Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        (Image.fromarray(RGB).quantize(256), "PNG"),
        (Image.fromarray(RAMP).convert("1"), "PNG"),
    ],
)
def test_every_mode_keeps_its_brightness(image: Image.Image, kind: str) -> None:
    opened = stored(image, kind)
    found = read_rgb(opened, "p")
    assert found.mode == ("L" if opened.mode[0] in "1LIF" else "RGB")
    wanted = (
        np.asarray(image.convert("RGB" if found.mode == "RGB" else "L"))
        if image.mode[0] in "1CP"
        else np.asarray(image)
    )
    if image.mode[0] in "IF":
        wanted = RAMP
    np.testing.assert_array_equal(np.asarray(found), wanted)


def test_sixteen_bits_may_be_twelve() -> None:
    values = [0, 1365, 2730, 4095]
    packed = bytes.fromhex("".join(f"{value:03x}" for value in values))
    tags = {
        256: 4,
        257: 1,
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 1,
        279: len(packed),
    }  # width .. bytes of the strip, at 8
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode == "I;16" and np.asarray(read_rgb(image, "p")).tolist() == [[0, 85, 170, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.fromarray(RGB if "L" not in mode else RAMP).convert("RGBA" if "L" not in mode else "LA")
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:2], alpha[2] = 0, 51
    image.putalpha(Image.fromarray(alpha))
    opened = stored(image, "PNG") if mode in ("RGBA", "LA") else image.convert(mode)
    opaque = np.asarray(image)[..., :-1].astype(float)
    share = alpha[..., None] / 255
    wanted, found = 255 + share * (opaque - 255), read_rgb(opened, "p")
    assert found.mode == ("L" if "L" in mode else "RGB")
    error = np.abs(np.atleast_3d(np.asarray(found)).astype(float) - wanted)
    assert error[:3].max() <= 3 and (mode == "PA" or error.max() <= 3)  # RGBa is rounded twice; PA has a palette of 256
    assert (np.asarray(found)[:2] == 255).all()


@pytest.mark.parametrize(
    ("image", "transparent", "kind"),
    [
        (Image.fromarray(RAMP), int(RAMP[3, 3]), "PNG"),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), int(RAMP[3, 3]) * 257, "PNG"),
        (Image.fromarray(RGB), tuple(RGB[3, 3].tolist()), "PNG"),
        (Image.fromarray(RAMP).convert("P"), int(RAMP[3, 3]), "GIF"),
    ],
)
def test_a_value_that_stands_for_transparent_is_white(image: Image.Image, transparent: object, kind: str) -> None:
    found = np.asarray(read_rgb(stored(image, kind, transparency=transparent), "p"))
    assert (found[3, 3] == 255).all() and (found[3, 2] == (RGB if image.mode == "RGB" else RAMP)[3, 2]).all()


def test_a_range_that_is_not_known_is_refused_by_name() -> None:
    for image, expected in (
        (Image.fromarray(RAMP.astype(np.int32)), "found 32-bit integers of 0 .. 255"),
        (Image.fromarray(RAMP.astype(np.float32)), "found floating-point numbers of 0 .. 255"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "found floating-point numbers of nan .. nan"),
    ):
        with pytest.raises(Failure, match=rf"^a/b\.tif: .*{expected}.*; convert it"):
            read_rgb(stored(image, "TIFF"), "a/b.tif")
        with pytest.raises(Failure, match=r"^a/b\.tif: "):
            cropped(image, 2, 2, where="a/b.tif")


def test_a_mode_without_a_way_to_rgb_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")  # as of Pillow 10

    image = Image.new("LAB", (2, 2))
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(
        Failure, match=r"^a\.tif: cannot be read as RGB \(conversion from LAB to RGB not supported\); convert it"
    ):
        read_rgb(image, "a.tif")


@pytest.mark.parametrize("bits", [8, 16])
def test_exif_turns_a_picture_of_any_depth(bits: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image = Image.fromarray(RAMP[:4] if bits == 8 else RAMP[:4].astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(np.asarray(read_rgb(stored(image, kind, exif=exif), "p")), np.rot90(RAMP[:4], -1))
