"""What is written can be read back, and nothing is left where writing fails."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import Output, grid, output, write_whole

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


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


def test_a_folder_gets_pngs_and_a_grid(tmp_path: Path) -> None:
    with output(tmp_path / "new" / "out", 5, np.zeros(5)) as sink:
        sink.add(0, PICTURES[:3])
        sink.add(3, PICTURES[3:])
    names = sorted(p.name for p in (tmp_path / "new" / "out").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png", "0004.png", "grid.png"]
    np.testing.assert_array_equal(pixels(tmp_path / "new" / "out" / "0004.png"), PICTURES[4])


def test_an_npz_holds_arrays_and_a_png_the_grid(tmp_path: Path) -> None:
    for name in ("a.npz", "a.png"):
        with output(tmp_path / name, 5, np.arange(5)) as sink:
            sink.add(0, PICTURES)
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["pictures"], PICTURES)
        np.testing.assert_array_equal(arrays["labels"], np.arange(5))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), grid(PICTURES))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Failure, match="No space left"):
        write_whole(tmp_path / "a.png", full)
    with pytest.raises(KeyboardInterrupt), output(tmp_path / "a.npz", 5, np.arange(5)) as sink:
        sink.add(0, PICTURES)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_places_that_will_not_do_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, expected in (("file", "is a file"), ("folder.png", "is a folder"), ("file/below", "cannot write")):
        with pytest.raises(Failure, match=expected):
            Output(tmp_path / path, 1)
