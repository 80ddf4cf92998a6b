"""Manifests and finished shards: what they say, what is read back, and one line for what is damaged or missing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import encoded
from cfgdiff.runtime.places import LocalPlace, sha256_of, size_of
from cfgdiff.runtime.shard_formats import FORMATS, Header, Item
from cfgdiff.runtime.shards import (
    MOST_SHARDS,
    Manifest,
    differing,
    gaps,
    manifest_name,
    parse_manifest,
    read_manifests,
    read_shard,
    shard_number,
    stem,
)  # fmt: skip

NAMES = ("pear", "apple", "fig")
MANIFEST = Manifest(
    2, 14, 7, 7, "shard-000002.tar", 0, "", "tar", "png", NAMES, ("fig", "pear"), (1.0, 2.0), 2**64 - 1,
    {"steps": 3, "sampler": "ddim", "interval": [0.1, 3.0]}, 64, (8, 8, 3), "mine", "ab" * 32, "cpu", "float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


def written(folder: Path, pictures: np.ndarray, form: str = "tar", **changed: object) -> Manifest:
    """A shard on the disk, by the format's own writer."""
    manifest = replace(MANIFEST, format=form, file=stem(2) + FORMATS[form].suffix, **changed)  # type: ignore[arg-type]
    items = (
        Item(14 + i, int(label), {"class": NAMES[label]}, encoded(picture))
        for i, (picture, label) in enumerate(zip(pictures, manifest.labels, strict=True))
    )
    place = LocalPlace(folder)
    with place.staging(manifest.file) as path:
        FORMATS[form].write(path, Header(NAMES, "png", manifest.seed), items)
        manifest = replace(manifest, bytes=size_of(path) or 0, sha256=sha256_of(path))
    place.write(manifest_name(2), json.dumps(manifest.to_json()).encode())
    return manifest


def test_a_manifest_comes_back_from_its_json_and_labels_go_round() -> None:
    assert parse_manifest(json.dumps(MANIFEST.to_json()).encode(), "m") == MANIFEST
    assert MANIFEST.labels.tolist() == [(2, 0)[i % 2] for i in range(14, 21)]
    assert (manifest_name(17), stem(MOST_SHARDS - 1)) == ("shard-000017.json", "shard-999999")
    assert [shard_number(name) for name in ("shard-000017.json", "shard-000017.tar", "other.json")] == [
        "000017",
        "",
        "",
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_is_read_as_it_was_written(form: str, pictures: np.ndarray, tmp_path: Path) -> None:
    manifest = written(tmp_path, pictures, form)
    (found,) = read_manifests(LocalPlace(tmp_path))
    read, labels = read_shard(LocalPlace(tmp_path), found)
    assert found == manifest and np.array_equal(read, pictures) and np.array_equal(labels, manifest.labels)
    assert (read.dtype, labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_shard_is_a_line_that_names_it(form: str, pictures: np.ndarray, tmp_path: Path) -> None:
    manifest = written(tmp_path, pictures, form)
    place, path = LocalPlace(tmp_path), tmp_path / manifest.file
    with pytest.raises(Failure, match=rf"{manifest.file}: expected 6 pictures of \(8, 8, 3\) from 14 on, as its"):
        read_shard(place, replace(manifest, count=6))
    with pytest.raises(Failure, match=rf"{manifest.file}: expected 7 pictures of \(8, 8, 3\) from 15 on"):
        read_shard(place, replace(manifest, first=15))
    file = sorted(path.iterdir())[3] if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(Failure, match=rf"^{path}: .*anew$"):
        read_shard(place, manifest)
    with pytest.raises(Failure, match=r"shard-000003.tar: is missing; make its shard anew"):
        read_shard(place, replace(manifest, file="shard-000003.tar"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "expected a manifest of version 1, found 2; read it with the release"),
        ({"sha256": None}, "is damaged; remove it"),
        ({"count": -1}, "is damaged"),
        ({"count": True}, "is damaged"),
        ({"classes": ["plum"]}, "is damaged"),
        ({"format": "zip"}, "is damaged"),
        ({"file": "../../etc/passwd"}, "is damaged"),
        ({"shape": [8, 8]}, "is damaged"),
    ],
)
def test_damaged_manifests_are_a_line(change: dict, expected: str) -> None:
    with pytest.raises(Failure, match=rf"^here: {expected}"):
        parse_manifest(json.dumps(MANIFEST.to_json() | change).encode(), "here")
    tree = MANIFEST.to_json()
    del tree["sha256"]
    for text in (json.dumps(tree).encode(), b"{", b"[]", b"\xff", b"[" * 100_000):
        with pytest.raises(Failure, match=r"^here: is damaged"):
            parse_manifest(text, "here")


def test_shards_of_different_sets_are_told_apart(pictures: np.ndarray, tmp_path: Path) -> None:
    other = replace(MANIFEST, seed=1, settings={"steps": 2, "sampler": "ddim"}, engine="openvino", shard=5, sha256="x")
    assert differing(MANIFEST, other, "now") == [
        f"seed {2**64 - 1} (now 1)", "steps 3 (now 2)", "interval 0.1,3.0 (now none)"
    ]  # fmt: skip
    assert differing(MANIFEST, replace(other, seed=MANIFEST.seed, settings=MANIFEST.settings), "now") == []
    with pytest.raises(Failure, match=f"{tmp_path}: holds no finished shard"):
        read_manifests(LocalPlace(tmp_path))
    written(tmp_path, pictures)
    (tmp_path / manifest_name(5)).write_text(json.dumps(other.to_json()))
    with pytest.raises(Failure, match=r"shard-000005.json: is of another set: seed 1 \(shard-000002.json: 1844674"):
        read_manifests(LocalPlace(tmp_path))


def test_gaps_are_the_missing_shards() -> None:
    manifests = [replace(MANIFEST, shard=k) for k in (0, 2, 3)]
    assert gaps(manifests) == [1] and gaps(manifests, 36) == [1, 4, 5] and gaps(manifests, 28) == [1]
