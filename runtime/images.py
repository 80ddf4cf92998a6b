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

from .errors import BadInput, Failure

NOTE = "cfgdiff"  # the text chunk of a PNG that holds its note; in a WebP it is the EXIF description
EXIF_DESCRIPTION = 0x010E


def cropped(image: Image.Image, height: int, width: int, mode: str = "RGB") -> np.ndarray:
    """(height, width, C) uint8: turned as its EXIF says, cropped to the middle, resized with antialiasing."""
    upright = ImageOps.exif_transpose(image).convert(mode)
    return np.atleast_3d(np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)))


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


def to_images(pictures: np.ndarray) -> list[Image.Image]:
    """Pictures (N, H, W, C) uint8, of 3 channels or 1, as images of Pillow. Raises `BadInput` for another array."""
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
        raise BadInput(f"pictures: expected (N, H, W, 3) or (N, H, W, 1) uint8, found {pictures.shape} {pictures.dtype}")
    return [Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture) for picture in pictures]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two sets of uint8 pictures in dB: one grey level everywhere is 48; equal ones are put at 100."""
    return float(min(100.0, 10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean()))))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, C) uint8 as a PNG."""
    write_whole(path, encoded(picture))


def encoded(picture: np.ndarray, kind: str = "png", note: dict[str, Any] | None = None) -> bytes:
    """(H, W, C) uint8 as the bytes of a PNG or a lossless WebP, with `note` inside as JSON."""
    (image,), buffer = to_images(picture[None]), io.BytesIO()
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
