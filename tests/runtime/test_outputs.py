"""What is written can be read back, nothing is left where writing fails, and memory does not grow with the job."""

import json
import resource
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import grid, read_note
from cfgdiff.runtime.outputs import GRID_MOST, Folder, output

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5])


def note(index: int) -> dict[str, Any]:
    return {"seed": 7, "index": index, "class": int(LABELS[index % 5])}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def fill(path: Path, kind: str = "png") -> None:
    with output(path, LABELS, note, kind) as out:
        out.add(np.arange(3), PICTURES[:3])
        out.add(np.arange(3, 5), PICTURES[3:])


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_folder_gets_pictures_with_notes_and_a_grid(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "new" / "out", kind)
    names = sorted(p.name for p in (tmp_path / "new" / "out").iterdir())
    assert names == [f"000{i}.{kind}" for i in range(5)] + ["grid.png"]
    for i in range(5):
        np.testing.assert_array_equal(pixels(tmp_path / "new" / "out" / f"000{i}.{kind}"), PICTURES[i])
        assert read_note(tmp_path / "new" / "out" / f"000{i}.{kind}") == note(i)
    np.testing.assert_array_equal(pixels(tmp_path / "new" / "out" / "grid.png"), grid(PICTURES))


def test_pictures_of_a_longer_run_before_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    assert not caplog.messages
    with output(tmp_path, LABELS[:2], note) as out:
        out.add(np.arange(2), PICTURES[:2])
    assert caplog.messages == [f"{tmp_path}: 3 pictures of an earlier run are there, too, from 0002.png on"]


def test_an_npz_holds_arrays_and_a_png_the_grid(tmp_path: Path) -> None:
    for name in ("a.npz", "a.png"):
        fill(tmp_path / name)
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["pictures"], PICTURES)
        np.testing.assert_array_equal(arrays["labels"], LABELS)
        assert json.loads(str(arrays["note"])) == note(0)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), grid(PICTURES))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_tar_is_a_web_dataset_with_the_same_bytes_every_time(tmp_path: Path, kind: str) -> None:
    for name in ("a.tar", "b.tar"):
        fill(tmp_path / name, kind)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames()[:4] == [f"000000.{kind}", "000000.cls", "000000.json", f"000001.{kind}"]
        parts = {name: archive.extractfile(name) for name in archive.getnames()}
        for i in range(5):
            picture, label, told = (parts[f"00000{i}.{suffix}"] for suffix in (kind, "cls", "json"))
            assert picture is not None and label is not None and told is not None
            with Image.open(picture) as image:
                np.testing.assert_array_equal(np.asarray(image), PICTURES[i])
            assert int(label.read()) == LABELS[i] and json.loads(told.read()) == note(i)


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.png"])
@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupted_file_is_not_there(tmp_path: Path, name: str, after: int) -> None:
    with pytest.raises(KeyboardInterrupt), output(tmp_path / name, LABELS, note) as out:
        if after:
            out.add(np.arange(after), PICTURES[:after])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_knows_what_is_missing_and_refuses_other_settings(tmp_path: Path) -> None:
    folder = Folder(tmp_path, LABELS, note, "png")
    assert folder.missing().tolist() == [0, 1, 2, 3, 4]
    folder.add(np.array([0, 3]), PICTURES[[0, 3]])
    assert folder.missing().tolist() == [1, 2, 4]
    folder.add(folder.missing(), PICTURES[[1, 2, 4]])
    folder.finish()
    np.testing.assert_array_equal(pixels(tmp_path / "grid.png"), grid(PICTURES))
    other = Folder(tmp_path, LABELS, lambda i: note(i) | {"seed": 8}, "png")
    with pytest.raises(BadInput, match=r"--resume: .*0000\.png was made with seed 7 \(now 8\); give the same flags or another --out"):
        other.missing()


def test_places_that_will_not_do_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.tar").mkdir()
    for path, expected in (
        ("file", "is a file"),
        ("folder.tar", "is a folder"),
        ("file/below", "cannot write"),
        ("file/x.npz", "cannot write"),
    ):
        with pytest.raises(Failure, match=expected), output(tmp_path / path, LABELS, note):
            pass


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.png"])
def test_memory_does_not_grow_with_the_job(tmp_path: Path, name: str) -> None:
    batch, n = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8), 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with output(tmp_path / name, np.zeros(n, np.int64), note) as out:
        for first in range(0, n, 500):
            out.add(np.arange(first, first + 500), batch)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 20, f"{grown:.0f} MB for 61 MB of pictures"
    if name == "a.npz":
        with np.load(tmp_path / name) as arrays:
            assert arrays["pictures"].shape == (n, 32, 32, 3)
    assert GRID_MOST == 1024
