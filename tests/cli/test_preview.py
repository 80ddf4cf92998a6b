"""Half blocks carry both pixels, and a preview is redrawn in place."""

import io
import re

import numpy as np
import pytest

from cfgdiff.cli.preview import Preview, half_blocks

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+)m\x1b\[48;2;(\d+);(\d+);(\d+)m▀")


def test_every_pixel_is_in_its_place() -> None:
    lines = half_blocks(PICTURES)
    assert len(lines) == 2
    for y, line in enumerate(lines):
        cells = np.array(CELL.findall(line), int).reshape(3, 5, 2, 3)
        np.testing.assert_array_equal(cells[:, :, 0], PICTURES[:, 2 * y])
        np.testing.assert_array_equal(cells[:, :, 1], PICTURES[:, 2 * y + 1])
    grey = half_blocks(PICTURES[..., :1])
    np.testing.assert_array_equal(
        np.array(CELL.findall(grey[0]), int).reshape(3, 5, 2, 3)[:, :, 1], PICTURES[:, 1, :, :1].repeat(3, -1)
    )


def test_it_redraws_in_place_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "14")
    stream = io.StringIO()
    preview = Preview(stream)
    preview.show(PICTURES, "first")
    once = stream.getvalue()
    assert once.count("▀") == 2 * 2 * 5 and once.count("\n") == 3 and "first" in once
    preview.show(PICTURES, "second")
    assert stream.getvalue()[len(once) :].startswith("\x1b[3A")
    preview.forget()
    length = len(stream.getvalue())
    preview.show(PICTURES, "third")
    assert not stream.getvalue()[length:].startswith("\x1b[3A")
