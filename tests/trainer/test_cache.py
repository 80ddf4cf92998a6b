"""Pictures are decoded once, and again when a file, the size or the settings change; a damaged cache is named."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import picture_folder as reader
from cfgdiff.trainer.cache import cached
from cfgdiff.trainer.data import load_data


def test_a_folder_is_decoded_once_and_again_when_it_changes(
    picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    decode = reader._decode
    monkeypatch.setattr(reader, "_decode", lambda path, *more: (decoded.append(path), decode(path, *more))[1])
    first = load_data(picture_folder, 16)
    again = load_data(picture_folder, 16)
    assert len(decoded) == 1 and isinstance(again.pictures, np.memmap)
    np.testing.assert_array_equal(first.pictures, again.pictures)
    load_data(picture_folder, 8)
    Image.new("RGB", (20, 20), "white").save(picture_folder / "red" / "0.png")
    changed = load_data(picture_folder, 16)
    assert len(decoded) == 3
    everything = np.concatenate([changed.pictures, changed.test_pictures])
    assert (everything == 255).all(axis=(1, 2, 3)).sum() == 1
    assert len(list((cache_folder() / "decoded").iterdir())) == 3


def test_a_cache_that_cannot_be_kept_or_read_is_named(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(picture_folder, 16)
    kept = next((cache_folder() / "decoded").iterdir())
    (kept / "labels.npy").write_bytes(b"nothing")
    with pytest.raises(Failure, match=rf"{kept}: damaged cache .*; remove the folder"):
        load_data(picture_folder, 16)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Failure, match=r"decoded pictures cannot be written .*XDG_CACHE_HOME"):
        cached("key", lambda: data)


def test_what_a_killed_process_left_is_removed_after_a_while(picture_folder: Path) -> None:
    decoded = cache_folder() / "decoded"
    for name in (".old", ".new"):
        (decoded / name).mkdir(parents=True)
        (decoded / name / "pictures.npy").write_bytes(b"half")
    os.utime(decoded / ".old", (0, time.time() - 2 * 3600))
    load_data(picture_folder, 16)
    assert [path.name for path in decoded.glob(".*")] == [".new"], "another process may be writing it"
