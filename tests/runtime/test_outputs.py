"""What is written can be read back, nothing is left where writing fails, and memory does not grow with the job."""

import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.archives import Tar, first_note
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import grid, load_picture, read_note
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


def test_they_are_told_before_anything_is_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    with pytest.raises(KeyboardInterrupt), output(tmp_path, LABELS[:2], note):
        assert len(caplog.messages) == 1
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_one_picture_is_itself_with_its_note_and_several_are_a_grid(tmp_path: Path, name: str, kind: str) -> None:
    smooth = np.linspace(0, 255, 8 * 8 * 3).astype(np.uint8).reshape(1, 8, 8, 3)
    for n, expected in ((1, smooth[0]), (2, grid(np.concatenate([smooth, smooth])))):
        with output(tmp_path / name, LABELS[:n], note) as out:
            for i in range(n):
                out.add(np.array([i]), smooth)
        image = load_picture(tmp_path / name, name)
        found = np.asarray(image)
        assert image.format == kind and found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= (0 if kind != "JPEG" else 40)
        if n == 1:
            assert read_note(tmp_path / name) == note(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_file_that_cannot_be_written_is_refused_and_a_dot_in_a_folder_is_not(tmp_path: Path) -> None:
    for name, suffix in (("a.zip", ".zip"), ("a.tar.gz", ".gz"), ("a.bmp", ".bmp"), ("a.TIFF", ".tiff")):
        expected = rf"^[^ ]*{name}: cannot write a {suffix} file; "
        expected += r"expected the name of a folder, or one ending in \.png, .*\.tar$"
        with pytest.raises(BadInput, match=expected), output(tmp_path / name, LABELS, note):
            pass
    assert not list(tmp_path.iterdir())
    fill(tmp_path / "run.v2")
    assert (tmp_path / "run.v2" / "0004.png").is_file()
    (tmp_path / "old.zip").mkdir()
    fill(tmp_path / "old.zip")
    assert (tmp_path / "old.zip" / "0004.png").is_file()


def test_an_empty_picture_is_missing_and_one_of_another_size_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "0002.png").write_bytes(b"")
    folder = Folder(tmp_path, LABELS, note, "png")
    assert folder.missing().tolist() == [2]
    Image.new("RGB", (4, 4)).save(tmp_path / "0002.png")
    with pytest.raises(
        Failure, match=r"0002\.png: expected a picture of \(8, 8, 3\), found \(4, 4, 3\); remove it, then resume"
    ):
        folder.finish()


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.png", "folder"])
def test_two_runs_at_once_leave_the_one_that_ends_later(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "alone" / name)
    with output(tmp_path / name, LABELS, note) as first:
        first.add(np.arange(2), PICTURES[:2])
        with output(tmp_path / name, LABELS, lambda i: note(i) | {"seed": 9}) as second:
            second.add(np.arange(5), PICTURES[::-1])
        first.add(np.arange(2, 5), PICTURES[2:])
    if name == "folder":
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [*(f"000{i}.png" for i in range(5)), "grid.png"]
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["alone", name])


FULL = """import resource, sys
from pathlib import Path
import numpy as np
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.outputs import output
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with output(Path(sys.argv[1]), np.zeros(99, np.int64), lambda i: {}) as out:
        for i in range(99):
            out.add(np.array([i]), np.random.default_rng(i).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
except Failure as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.png", "folder"])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path, name: str) -> None:
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / name)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert (
        result.stdout.startswith(f"{tmp_path / name}")
        and "cannot be written" in result.stdout
        and len(result.stdout.splitlines()) == 1
    )
    assert "File too large" in result.stdout and not [
        p for p in tmp_path.rglob("*") if p.name != "folder" and p.parent.name != "folder"
    ]
    assert not list(tmp_path.rglob(".*"))


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
    expected = (
        r"^resume: .*0000\.png was made with seed 7 \(now 8\); ask for the same, or for another place with `out`$"
    )
    with pytest.raises(BadInput, match=expected):
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


def resumed(path: Path, n: int = 5) -> list[int]:
    """Continue a .tar of n pictures; gives the numbers of those that were missing."""
    added = []
    with output(path, LABELS[:n], note, resume=True) as out:
        assert isinstance(out, Tar)
        for i in out.missing().tolist():
            out.add(np.array([i]), PICTURES[i : i + 1])
            added.append(i)
    return added


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, 1600, 4000, 5000, 10**9])
def test_a_tar_is_continued_after_its_last_whole_picture(tmp_path: Path, cut: int) -> None:
    fill(tmp_path / "whole.tar")
    left = tmp_path / ".a.tar.0123abcd.partial"
    left.write_bytes((tmp_path / "whole.tar").read_bytes()[:cut])
    with tarfile.open(tmp_path / "whole.tar") as archive:
        ends = [m.offset_data + 512 for m in archive if m.name.endswith(".json")]
    assert first_note(tmp_path / "a.tar") == (note(0) if cut >= ends[0] else None)
    assert resumed(tmp_path / "a.tar") == list(range(sum(end <= cut for end in ends), 5))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes() and not left.exists()


def test_an_interrupted_tar_stays_only_for_resume(tmp_path: Path) -> None:
    for resume in (True, False):
        with pytest.raises(KeyboardInterrupt), output(tmp_path / "a.tar", LABELS, note, resume=resume) as out:
            out.add(np.arange(3), PICTURES[:3])
            raise KeyboardInterrupt
        assert len(list(tmp_path.iterdir())) == resume
    with pytest.raises(KeyboardInterrupt), output(tmp_path / "a.tar", LABELS, note, resume=True) as out:
        out.add(np.arange(3), PICTURES[:3])
        raise KeyboardInterrupt
    made_otherwise = pytest.raises(BadInput, match=r"^resume: .*: 000000\.png was made with seed 7 \(now 8\)")
    with made_otherwise, output(tmp_path / "a.tar", LABELS, lambda i: note(i) | {"seed": 8}, resume=True):
        pass
    assert resumed(tmp_path / "a.tar") == [3, 4]


def test_a_tar_that_is_there_is_taken_over_and_made_longer_or_shorter(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    for n, added in ((2, [0, 1]), (2, []), (5, [2, 3, 4]), (3, []), (3, [])):
        assert resumed(target, n) == added
        with output(tmp_path / "alone.tar", LABELS[:n], note) as out:
            out.add(np.arange(n), PICTURES[:n])
        assert target.read_bytes() == (tmp_path / "alone.tar").read_bytes()
    target.write_bytes(b"no archive")
    assert first_note(target) is None and resumed(target) == [0, 1, 2, 3, 4]


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
