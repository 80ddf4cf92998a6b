"""Pictures as files: every file is whole or absent, and a picture carries a note of how it was made."""

import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from .errors import Failure

NOTE = "cfgdiff"  # the text chunk of a PNG that holds its note; in a WebP it is the EXIF description
EXIF_DESCRIPTION, EXIF_ORIENTATION, TIFF_BITS = 0x010E, 0x0112, 258


def cropped(image: Image.Image, height: int, width: int, mode: str = "RGB", where: str = "picture") -> np.ndarray:
    """(height, width, C) uint8: see `read_rgb`, cropped to the middle, resized with antialiasing. `where` names it in errors."""
    upright = read_rgb(image, where).convert(mode)
    return np.atleast_3d(np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)))


def read_rgb(image: Image.Image, where: str) -> Image.Image:
    """An opened picture of any mode as RGB, or as L where it has no colours: 8 bits, opaque, turned as its EXIF says.

    16 bits are scaled by their range, floating-point numbers from 0 .. 1. What is transparent becomes white, in proportion to its alpha;
    what a transparent pixel hides is not seen. Of several frames it is the one that
    `image` stands at: the first, unless it was moved.

    Args:
        where: names the picture in errors.

    Raises:
        Failure: the range of its pixels is not known (32-bit integers, floating-point numbers outside of 0 .. 1), or Pillow has no way
            from its mode to RGB (LAB).
    """
    opaque = _opaque(_eight_bits(image, where) if image.mode[0] in "IF" else image, where)
    opaque.getexif()[EXIF_ORIENTATION] = image.getexif().get(EXIF_ORIENTATION, 1)  # a TIFF's does not outlive a conversion
    return ImageOps.exif_transpose(opaque)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """A picture of mode I;16, I or F as L; LA where one of its values stands for transparent."""
    values, top = np.asarray(image), 1.0
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # Pillow before 11, and PGM
        top = 2.0 ** getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))[0] - 1  # a TIFF may have 12
    elif image.mode != "F" or not (values.min() >= 0 and values.max() <= 1):  # nor NaN
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        expected = "expected 8 or 16 bits, or floating-point numbers of 0 .. 1"
        raise Failure(f"{where}: {expected}, found {kind} of {values.min():g} .. {values.max():g}; convert it to 8 bits")
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
    """(N, H, W, C) uint8 -> one picture (H', W', C), row by row, by default as square as it gets, white between."""
    n, h, w, c = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = pad + i // columns * (h + pad), pad + i % columns * (w + pad)
        sheet[y : y + h, x : x + w] = picture
    return sheet


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two sets of uint8 pictures in dB: one grey level everywhere is 48; equal ones are put at 100."""
    return float(min(100.0, 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean()))))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, C) uint8 as a PNG."""
    write_whole(path, encoded(picture))


def encoded(picture: np.ndarray, kind: str = "png", note: dict[str, Any] | None = None) -> bytes:
    """(H, W, C) uint8 as the bytes of a PNG or a lossless WebP, with `note` inside as JSON."""
    image, buffer = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture), io.BytesIO()
    text = None if note is None else json.dumps(note)
    if kind == "webp":
        exif = Image.Exif()
        if text is not None:
            exif[EXIF_DESCRIPTION] = text
        image.save(buffer, "WEBP", lossless=True, quality=100, exif=exif.tobytes())
    else:
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_text(NOTE, text)
        image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_note(path: Path) -> dict[str, Any]:
    """The note inside a picture. Raises `Failure` where there is none."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(EXIF_DESCRIPTION) if image.format == "WEBP" else getattr(image, "text", {}).get(NOTE)
        note: dict[str, Any] = json.loads(found or "")
        return note
    except OSError as error:
        raise Failure(f"{path}: cannot be read as a picture ({error.strerror or 'unknown format'})") from None
    except (TypeError, ValueError):
        raise Failure(f"{path}: says nothing of how it was made; expected a picture as written by cfgdiff-run") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it. Raises `Failure` where that fails."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Failure(f"--out: cannot write {path} ({error.strerror or error}); choose another place or make room") from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
