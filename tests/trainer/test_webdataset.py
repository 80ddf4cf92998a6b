"""Shards train like the same pictures in memory would, in flat memory, and what is wrong with them is named."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.archives import Tar
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import encoded
from cfgdiff.trainer.build import new_run
from cfgdiff.trainer.checkpoint import read_checkpoint
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data, reader_of
from cfgdiff.trainer.describe import describe, sheet
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.start import resume

N, SHARD = 100, 30
PICTURES = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(N) % 3
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of four shards, the last one shorter, as cfgdiff-run writes a .tar."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for k, first in enumerate(range(0, N, SHARD)):
        rows = np.arange(first, min(first + SHARD, N))
        with (folder / f"train-{k:04d}.tar").open("x+b") as file:
            note = [{"class": NAMES[LABELS[i]], "index": int(i)} for i in rows]
            tar = Tar(file, LABELS[rows], note.__getitem__, "png")
            tar.add(np.arange(len(rows)), PICTURES[rows])
            tar.finish()
    return folder


def write(path: Path, files: dict[str, bytes]) -> Path:
    """A .tar of these files."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_shards_hold_what_an_array_of_the_same_pictures_does(shards: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", pictures=PICTURES, labels=LABELS, class_names=NAMES)
    read, same = load_data(shards, 16), load_data(tmp_path / "same.npz", 16)
    assert reader_of(shards) == "webdataset" and read.name == "shards" and read.class_names == NAMES
    for name in ("pictures", "labels", "test_pictures", "test_labels"):
        np.testing.assert_array_equal(np.asarray(getattr(read, name)), getattr(same, name))
    rows = np.array([70, 3, 3, 94, 31])
    np.testing.assert_array_equal(read.pictures[rows], same.pictures[rows])
    np.testing.assert_array_equal(read.pictures[10:70:20], same.pictures[10:70:20])
    assert isinstance(read.in_memory().pictures, np.ndarray) and "4 shards, read while training" in read.notes


def test_a_pattern_takes_some_and_a_change_is_noticed(shards: Path) -> None:
    some = load_data(shards / "train-{0001..0002}.tar", 16)
    assert len(some.labels) + len(some.test_labels) == 2 * SHARD
    everything = load_data(shards, 16)
    (shards / "train-0003.tar").unlink()
    assert len(load_data(shards, 16).labels) < len(everything.labels)
    (shards / "classes.txt").write_text("x\ny\nz\n")
    assert load_data(shards, 16).class_names == ["x", "y", "z"]


def test_a_batch_reads_few_shards_in_flat_memory(tmp_path: Path) -> None:
    """A set of 48 MB, decoded, of which a batch holds 0.4 MB."""
    picture = encoded(np.zeros((128, 128, 3), np.uint8))
    for k in range(10):
        files = {f"{i:03d}.{kind}": data for i in range(100) for kind, data in (("png", picture), ("cls", b"1"))}
        write(tmp_path / f"{k}.tar", files)
    data = load_data(tmp_path, 128, options={"window": 2})
    data.pictures[data.batch(0, 8, 0)]
    tracemalloc.start()
    for first in range(0, 200, 8):
        assert data.pictures[data.batch(first, 8, 0)].shape == (8, 3, 128, 128)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4e6


def tensors_after(folder: Path, tree: dict, data: Any, stops: list[int]) -> dict:
    """The checkpoint of a run that is resumed after each of these numbers of pictures."""
    first, *rest = stops
    config = make_config(tree | {"train": tree["train"] | {"pictures": 96}})

    def until(run: Any, pictures: int) -> None:
        run.config = make_config(run.config.model_dump(), (f"train.pictures={pictures}",))
        assert train(run)

    run = new_run(config, data, folder, "test")
    until(run, first)
    for stop in rest:
        run = resume(folder, lambda kept: make_config(kept, ("train.pictures=96",)), lambda _: data, "test", None)
        until(run, stop)
    return read_checkpoint(folder)[1]


def test_a_run_that_was_interrupted_repeats_an_undisturbed_one_bit_for_bit(
    shards: Path, tiny_tree: dict, tmp_path: Path
) -> None:
    tree = tiny_tree | {"optimiser": tiny_tree["optimiser"] | {"decay_share": 0}}  # of a length that is not known yet
    tree["data"] = {"name": "webdataset", "options": {"window": 2}}
    data = [load_data(shards, 16, "webdataset", {"window": 2}) for _ in range(2)]
    whole = tensors_after(tmp_path / "whole", tree, data[0], [96])
    parts = tensors_after(tmp_path / "parts", tree, data[1], [40, 96])
    assert whole.keys() == parts.keys() and all(whole[name].equal(parts[name]) for name in whole)


PNG = encoded(PICTURES[0])


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: write(f / "x.tar", {"a.png": PNG}), r"x.tar: 'a': expected one picture with a .cls .*, found png"),
        (lambda f: write(f / "x.tar", {"a.cls": b"1"}), r"x.tar: 'a': expected one picture .*, found cls;"),
        (lambda f: write(f / "x.tar", {"a.png": PNG, "a.cls": b"frog"}), r"'a.cls': expected a class number.*'frog'"),
        (lambda f: write(f / "x.tar", {"a.png": PNG, "a.cls": b"70000"}), r"expected a class number of 0 \.\. 65535"),
        (lambda f: write(f / "x.tar", {}), r"x.tar: holds no pictures; expected KEY.png"),
        (lambda f: (f / "x.tar").write_bytes(b"no tar" * 999), r"x.tar: is damaged \(.*\); make or copy"),
        (lambda f: cut(f / "train-0001.tar", 12_000), r"train-0001.tar: is damaged \(.*\)"),
        (lambda f: cut(f / "train-0001.tar", 4096), r"train-0001.tar: is damaged \(.*\)"),
        (lambda f: flip(f / "train-0002.tar", 2048 * 4 + 3), r"train-0002.tar: is damaged|cannot be read"),
        (lambda f: (f / "classes.txt").write_text("a\nb\n"), r"classes.txt: names 2 classes, but .* the label 2;"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(damage: Callable[[Path], object], message: str, shards: Path) -> None:
    damage(shards)
    with pytest.raises(Failure, match=message) as found:
        np.asarray(load_data(shards, 16).pictures)
    assert "\n" not in str(found.value)


def test_every_damaged_header_is_found(shards: Path) -> None:
    """tarfile itself takes a header with a wrong checksum for the end of the archive."""
    path = shards / "train-0000.tar"
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive]
    for offset in offsets[:: len(offsets) // 7]:
        flip(path, offset)
        with pytest.raises(Failure, match=r"train-0000.tar: is damaged"):
            load_data(shards, 16)
        flip(path, offset)


def test_a_damaged_picture_is_named_when_it_is_read(shards: Path) -> None:
    with tarfile.open(shards / "train-0003.tar") as archive:
        member = archive.getmember("000000.png")
    flip(shards / "train-0003.tar", member.offset_data + 60)
    message = rf"train-0003.tar: the picture at byte {member.offset_data} cannot be read .*; make or copy"
    with pytest.raises(Failure, match=message):
        np.asarray(load_data(shards, 16).pictures)


def test_sizes_classes_and_files_beside_are_what_users_expect(tmp_path: Path) -> None:
    oblong, grey = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(oblong, "JPEG")
    Image.new("L", (16, 16), 7).save(grey, "PNG")
    files = {"d/a.jpg": oblong.getvalue(), "d/a.cls": b"2\n", "d/a.json": json.dumps({"class": "two"}).encode(),
             "._junk": b"x", "d/b.c.png": grey.getvalue()}  # fmt: skip
    del files["d/b.c.png"]
    files |= {"e/a.cls": b"0", "e/a.PNG": grey.getvalue(), "e/a.txt": b"a caption"}
    write(tmp_path / "x.tar", files)
    data = load_data(tmp_path / "x.tar", 16)
    assert data.class_names == ["0", "1", "two"] and data.labels.tolist() == [2, 0] and data.name == "x"
    assert data.pictures[[1]].tolist() == np.full((1, 3, 16, 16), 7).tolist()
    assert any("pictures of 40x20 become 16x16, cropped to their middle" in note for note in data.notes)


def test_folders_with_an_archive_beside_them_stay_folders(shards: Path) -> None:
    (shards / "ant").mkdir()
    assert reader_of(shards) == "folder"
    (shards / "ant").rmdir()
    assert reader_of(shards) == "webdataset" == reader_of(shards / "train-0002.tar")


def test_sets_in_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "shard-000000").mkdir()
    (tmp_path / "shard-000000.json").write_text("{}")
    with pytest.raises(Failure, match=r"expected .tar shards, found those of another format; take --set data.name"):
        reader_of(tmp_path)


def test_settings_and_places_without_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data.options: window must be 1 or more, found 0"):
        load_data(shards, 16, "webdataset", {"window": 0})
    with pytest.raises(BadInput, match=r"has no option 'windw'.*did you mean 'window'"):
        load_data(shards, 16, "webdataset", {"windw": 2})
    with pytest.raises(Failure, match=r"no .tar shards there; expected a folder or URL"):
        load_data(tmp_path, 16, "webdataset")
    with pytest.raises(Failure, match=r"train.balanced: shards is read shard by shard; leave it out"):
        load_data(shards, 16).batch(0, 8, seed=0, balanced=True)


def test_info_describes_shards(shards: Path) -> None:
    data, text = describe(shards, 16)
    assert "# shards: .tar shards (WebDataset)" in text and "95 pictures in 3 classes" in text
    assert sheet(data).shape == (8 * 18 + 2, 3 * 18 + 2, 3)


def test_shards_at_a_url_are_fetched_a_few_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And removed again: what a process holds on its disk does not grow with the set."""
    fsspec = pytest.importorskip("fsspec", reason="needs the cloud extra: pip install 'cfgdiff[cloud]'")
    store, folders = fsspec.filesystem("memory"), set[str]()
    for file in shards.iterdir():
        store.pipe(f"/bucket/set/{file.name}", file.read_bytes())
    monkeypatch.setattr("tempfile.tempdir", str(shards.parent))
    url = Path("memory://bucket/set")  # as click makes it of the user's words
    assert reader_of(url) == "webdataset"
    here, there = load_data(shards, 16, options={"window": 1}), load_data(url, 16, options={"window": 1})
    np.testing.assert_array_equal(here.test_pictures, there.test_pictures)
    for first in range(0, 190, 10):
        rows = there.batch(first, 10, 0)
        np.testing.assert_array_equal(there.pictures[rows], here.pictures[rows])
        held = {path.name for path in shards.parent.glob("cfgdiff-*")}
        folders |= held
        assert 1 <= len(held) <= 2, "two groups of one shard"
    assert len(folders) >= 7, "each shard was fetched in each of two epochs"
    some = load_data(Path("memory://bucket/set/train-{0000..0001}.tar"), 16)
    assert len(some.labels) == 2 * SHARD - 3
    store.rm("/bucket", recursive=True)
    with pytest.raises(Failure, match=r"memory:/bucket/set: no .tar shards there|cannot be read"):
        load_data(url, 16)
