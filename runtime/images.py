"""Pictures as bytes and arrays: they are read as 8 bits, and written with a note of how they were made."""

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from .errors import BadInput, Failure
from .files import write_whole

NOTE = "cfgdiff"  # the text chunk of a PNG that holds its note; elsewhere it is the EXIF description
EXIF_DESCRIPTION, EXIF_ORIENTATION, TIFF_BITS = 0x010E, 0x0112, 258


def cropped(image: Image.Image, height: int, width: int, mode: str = "RGB", where: str = "picture") -> np.ndarray:
    """`read_rgb`, cropped to the centre and resized with antialiasing: (height, width, C) uint8."""
    upright = read_rgb(image, where).convert(mode)
    return np.atleast_3d(np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)))


def read_rgb(image: Image.Image, where: str) -> Image.Image:
    """An opened picture of any mode as RGB, or as L where it has no colours: 8 bits, opaque, upright by its EXIF.

    16 bits are scaled by their range, floating-point numbers from 0 .. 1. Transparent pixels become white in proportion
    to alpha. Of several frames the current one is taken: the first, unless the caller moved on.

    Args:
        where: names the picture in errors.

    Raises:
        Failure: the range of its pixels is not known (32-bit integers, floating-point numbers outside of 0 .. 1), or
            Pillow cannot convert its mode to RGB (LAB).
    """
    opaque = _opaque(_eight_bits(image, where) if image.mode[0] in "IF" else image, where)
    # A TIFF's orientation does not outlive a conversion.
    opaque.getexif()[EXIF_ORIENTATION] = image.getexif().get(EXIF_ORIENTATION, 1)
    return ImageOps.exif_transpose(opaque)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """A picture of mode I;16, I or F as L, or as LA where one value means transparent."""
    values, top = np.asarray(image), 1.0
    # Mode I of a PNG is Pillow's before version 11, that of a PPM a PGM's.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        top = 2.0 ** getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))[0] - 1  # a TIFF may have 12
    elif image.mode != "F" or not (values.min() >= 0 and values.max() <= 1):  # nor NaN
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        expected = "expected 8 or 16 bits, or floating-point numbers of 0 .. 1"
        raise Failure(
            f"{where}: {expected}, found {kind} of {values.min():g} .. {values.max():g}; convert it to 8 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8))
    if isinstance(hidden := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey


def _opaque(image: Image.Image, where: str) -> Image.Image:
    """On white, as RGB, or as L where it has no colours."""
    target = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            straight = image.convert("LA") if image.mode == "La" else image
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), straight.convert("RGBA"))
        return image.convert(target)
    except ValueError as error:
        raise Failure(f"{where}: cannot be read as RGB ({error}); convert it, as to an 8-bit PNG") from None


def grid(pictures: np.ndarray, pad: int = 2, columns: int | None = None) -> np.ndarray:
    """(N, H, W, C) uint8 -> one picture (H', W', C), row by row on white; without `columns` nearly square."""
    n, h, w, c = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[y : y + h, x : x + w] = picture
    return sheet


def to_images(pictures: np.ndarray) -> list[Image.Image]:
    """Pictures (N, H, W, C) uint8, of 3 channels or 1, as images of Pillow. Raises `BadInput` for another array."""
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
        raise BadInput(
            f"pictures: expected (N, H, W, 3) or (N, H, W, 1) uint8, found {pictures.shape} {pictures.dtype}"
        )
    return [Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture) for picture in pictures]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two sets of uint8 pictures in dB: 48 is one grey level everywhere, 100 is equal."""
    return float(min(100.0, 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean()))))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, C) uint8 as a PNG."""
    write_whole(path, encoded(picture))


def encoded(picture: np.ndarray, kind: str = "png", note: dict[str, Any] | None = None) -> bytes:
    """(H, W, C) uint8 as the bytes of a PNG, a lossless WebP or a JPEG (`jpg`), with `note` inside as JSON."""
    (image,), buffer = to_images(picture[None]), io.BytesIO()
    text = None if note is None else json.dumps(note)
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_text(NOTE, text)
        image.save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    if text is not None:
        exif[EXIF_DESCRIPTION] = text
    if kind == "webp":
        image.save(buffer, "WEBP", lossless=True, quality=100, exif=exif.tobytes())
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    return buffer.getvalue()


def load_picture(path: Path, where: str) -> Image.Image:
    """The picture in a file, read to its end; of several frames the first. Raises `Failure`, which names `where`."""
    if path.exists() and not path.is_file():
        raise Failure(f"{where}: cannot be read as a picture (it is no regular file)")  # a pipe may never end
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                frames(image)  # Pillow counts frames only while the file is open
                image.load()
                return image
    except OSError as error:
        raise Failure(f"{where}: cannot be read as a picture ({error.strerror or 'unknown format'})") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        raise Failure(f"{where}: cannot be read as a picture ({error or type(error).__name__})") from None


def frames(image: Image.Image) -> int:
    """How many pictures its file holds. The second one of an MPO is not counted: cameras add it as a preview."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def read_note(path: Path) -> dict[str, Any]:
    """The note inside a picture. Raises `Failure` where there is none."""
    image = load_picture(path, str(path))
    try:
        text = getattr(image, "text", {}).get(NOTE) if image.format == "PNG" else image.getexif().get(EXIF_DESCRIPTION)
        note = json.loads(text or "")
    except Exception:  # damaged EXIF, or text that is not JSON or nested too deeply
        note = None
    if not isinstance(note, dict):
        raise Failure(f"{path}: has no note of how it was made; expected a picture as written by cfgdiff-run")
    return note


def check_note(where: str, note: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises `BadInput` where `note`, that of a picture which a resumed run keeps, differs from the run's."""
    read_back = json.loads(json.dumps(wanted))
    differing = [f"{key} {note.get(key)} (now {value})" for key, value in read_back.items() if note.get(key) != value]
    if differing:
        made = f"{where} was made with {', '.join(differing)}"
        raise BadInput(f"resume: {made}; ask for the same, or for another place with `out`")
