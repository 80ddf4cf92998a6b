"""The formats, read by the programs that they are for: tarfile and webdataset, `datasets`, and Pillow."""

import gc
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import encoded, read_note
from cfgdiff.runtime.places import sha256_of
from cfgdiff.runtime.shard_formats import FORMATS, Header, Item

NAMES, N, SEED = ["pear", "apple"], 205, 2**63 + 1  # pictures: more than two row groups
PICTURES = np.random.default_rng(1).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
NOTES = [{"class": NAMES[i % 2], "index": 10**9 + i, "steps": 3} for i in range(N)]


def items(kind: str = "png") -> list[Item]:
    return [
        Item(10**9 + i, i % 2, note, encoded(picture, kind, note))
        for i, (picture, note) in enumerate(zip(PICTURES, NOTES, strict=True))
    ]


def written(path: Path, form: str, kind: str = "png") -> Path:
    FORMATS[form].write(path, Header(NAMES, kind, SEED), iter(items(kind)))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_items_come_back_and_the_same_items_are_the_same_bytes(form: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a", form, kind)
    assert list(FORMATS[form].read(path)) == items(kind)
    assert sha256_of(path) == sha256_of(written(tmp_path / "b", form, kind))


def test_a_tar_holds_nothing_of_the_machine(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path / "a.tar", "tar")) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert [m.name for m in members[:3]] == ["1000000000.png", "1000000000.cls", "1000000000.json"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_a_tar(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    path = written(tmp_path / "a.tar", "tar")
    found = list(wds.WebDataset(str(path), shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json"))
    gc.collect()  # webdataset leaves the file open
    assert len(found) == N and all(np.array_equal(f[0], picture) for f, picture in zip(found, PICTURES, strict=True))
    assert [(label, note) for _, label, note in found] == [(i % 2, note) for i, note in enumerate(NOTES)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of datasets itself
@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_datasets_reads_parquet_and_folders(form: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the huggingface extra: pip install 'cfgdiff[huggingface]'")
    path = written(tmp_path / ("a" + FORMATS[form].suffix), form)
    source = {"data_files": str(path)} if form == "parquet" else {"data_dir": str(path)}
    kind = "parquet" if form == "parquet" else "imagefolder"
    found = datasets.load_dataset(kind, **source, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == N and [json.loads(note) for note in found["note"]] == NOTES
    assert found["label"] == [i % 2 for i in range(N)]
    assert all(np.array_equal(np.asarray(row), picture) for row, picture in zip(found["image"], PICTURES, strict=True))
    if form == "parquet":
        assert found.features["label"].names == NAMES and set(found["seed"]) == {SEED}
        assert found["index"] == [10**9 + i for i in range(N)]


def test_a_folder_holds_pictures_with_notes_and_has_the_sha256_of_sha256sum(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "folder")
    assert read_note(path / "1000000007.png") == NOTES[7]
    names = sorted(p.name for p in path.iterdir())
    lines = subprocess.run(["sha256sum", *names], cwd=path, capture_output=True, check=True).stdout
    assert sha256_of(path) == hashlib.sha256(lines).hexdigest()


def test_parquet_without_pyarrow_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Failure, match=r"^parquet: needs pyarrow .*pip install 'cfgdiff\[parquet\]'"):
        written(tmp_path / "a.parquet", "parquet")
