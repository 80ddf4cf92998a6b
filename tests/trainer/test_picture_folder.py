"""Folders of pictures: which files are read as what, what is held out, and that notes name all that is changed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.picture_folder import scan


def fill(folder: Path, grey: int, n: int = 4, name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (16, 16), (grey, 0, i)).save(folder / f"{name}{i}.png")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val"), ("train", "valid")])
def test_a_folder_of_two_parts_is_their_split(names: tuple[str, str], tmp_path: Path) -> None:
    for part, n, more in zip(names, (6, 3), (0, 100), strict=True):
        fill(tmp_path / part / "cat", 10 + more, n)
        fill(tmp_path / part / "dog", 20 + more, n)
    data = load_data(tmp_path, 16)
    assert data.class_names == ["cat", "dog"]
    assert sorted(data.pictures[:, 0, 0, 0].tolist()) == [10] * 6 + [20] * 6
    assert (
        sorted(zip(data.test_labels.tolist(), data.test_pictures[:, 0, 0, 0].tolist(), strict=True))
        == [(0, 110)] * 3 + [(1, 120)] * 3
    )
    assert data.test_labels.tolist() != sorted(data.test_labels), (
        "the first thousand must not be of the first classes alone"
    )
    assert f"'{names[0]}' is trained on, '{names[1]}' held out" in data.notes


def test_other_parts_of_a_split_are_left_out_and_said(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path / part / "cat", 10)
    fill(tmp_path / "unlabelled", 10)
    data = load_data(tmp_path, 16)
    assert len(data.pictures) == len(data.test_pictures) == 4 and data.notes[0].endswith(
        "'test' held out; unlabelled, val left out"
    )


def test_train_without_another_part_is_held_out_from(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cat", 10, 20)
    fill(tmp_path / "train" / "dog", 20, 20)
    data = load_data(tmp_path, 16)
    assert data.class_names == ["cat", "dog"] and len(data.pictures) == 38 and len(data.test_pictures) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        fill(tmp_path / name, 10)
    assert load_data(tmp_path, 16).class_names == ["bus", "train"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "test"], "'train' and 'test' look like a split, but hold no class folders"),
        (["train/cat", "test/cat", "test/cow"], "'test' has the class 'cow', which 'train' lacks"),
        (
            ["images/cat", "images/dog"],
            r"'images' alone is there and holds folders, no pictures; if these are the classes, give .*images",
        ),
        (["test/cat", "test/dog"], "holds 'test' alone, with folders in it; expected 'train' beside it"),
    ],
)
def test_what_would_train_other_classes_than_meant_is_refused(
    folders: list[str], expected: str, tmp_path: Path
) -> None:
    for folder in folders:
        fill(tmp_path / folder, 10)
    with pytest.raises(Failure, match=expected) as error:
        load_data(tmp_path, 16)
    assert "\n" not in str(error.value)


def test_files_that_are_left_out_or_lie_deep_are_said(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "cat" / "more", 10, 2, "deep")
    fill(tmp_path / "dog", 20)
    fill(tmp_path, 30, 1, "beside")
    fill(tmp_path / ".hidden", 30)
    fill(tmp_path / "cat" / ".checkpoints", 30)
    (tmp_path / "dog" / "._0.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "dog" / "new.heic").write_bytes(b"")
    layout = scan(tmp_path)
    assert (
        layout.classes == ["cat", "dog"]
        and [label for _, label in layout.train] == [0] * 6 + [1] * 4
        and layout.test is None
    )
    deep, beside, strange = layout.notes
    assert deep == "2 pictures in folders inside a class folder: taken for that class, for example cat/more/deep0.png"
    assert beside == "1 picture in no class folder: left out, for example beside0.png"
    assert strange.startswith("1 file of other kinds than ") and strange.endswith(
        ": left out, for example dog/new.heic"
    )
    assert load_data(tmp_path, 16).notes[:3] == layout.notes


def test_pictures_that_are_changed_are_said(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    (tmp_path / "dog").mkdir()
    frames = [Image.new("L", (20, 20), grey) for grey in (50, 150)]
    frames[0].save(tmp_path / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (20, 30), (0, 0, 0, 0)).save(tmp_path / "dog" / "clear.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "dog" / "tiny.png")
    data = load_data(tmp_path, 16)
    assert data.notes == (
        "1 picture of several frames: the first is read, for example dog/moving.gif",
        "1 picture with an alpha channel: what is transparent becomes white, for example dog/clear.png",
        "1 picture not square: cropped to the middle, for example dog/clear.png",
        "1 picture smaller than train.image_size: enlarged, for example dog/tiny.png",
    )
    clear, moving, tiny = data.pictures[data.labels == 1].mean(axis=(1, 2, 3))
    assert (clear, moving, tiny) == (255, 50, 0)


def test_sixteen_bits_and_floating_point_keep_their_brightness(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    (tmp_path / "dog").mkdir()
    Image.fromarray(np.full((16, 16), 33_138, np.uint16)).save(tmp_path / "dog" / "a.png")
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "dog" / "b.tif")
    data = load_data(tmp_path, 16)
    np.testing.assert_allclose(data.pictures[data.labels == 1].mean(axis=(1, 2, 3)), [33_138 / 257, 127.5], atol=0.5)
    Image.fromarray(np.full((16, 16), 300, np.int32)).save(tmp_path / "dog" / "c.tif")
    with pytest.raises(Failure, match=r"cannot read .*c\.tif: expected 8 or 16 bits, .*with `skip_broken`"):
        load_data(tmp_path, 16)


def test_gray_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (16, 16), 7).save(tmp_path / "cat" / "0.png")
    data = load_data(tmp_path, 16)
    assert data.notes == (
        "all pictures are gray; the model has three channels all the same",
    ) and data.pictures.shape == (1, 3, 16, 16)


def test_what_was_skipped_is_said_from_the_cache_too(picture_folder: Path) -> None:
    for i in range(5):
        (picture_folder / "red" / f"bad{i}.png").write_bytes(b"no picture")
    first, again = (load_data(picture_folder, 16, options={"skip_broken": True}).notes for _ in range(2))
    assert first == again and any(
        "5 pictures that cannot be read, left out: " in n and "bad2.png" in n and "and 2 more" in n for n in first
    )


def test_a_picture_that_moves_from_one_part_to_the_other_is_read_again(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cat", 10)
    fill(tmp_path / "test" / "cat", 20, 2, "t")
    load_data(tmp_path, 16)
    (tmp_path / "test" / "cat" / "t0.png").rename(tmp_path / "train" / "cat" / "t0.png")
    data = load_data(tmp_path, 16)
    assert (len(data.pictures), len(data.test_pictures)) == (5, 1)
