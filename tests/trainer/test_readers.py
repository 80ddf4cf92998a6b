"""CIFAR-10's official layout, folders of pictures and .npz files: what is read is what lies there, and what is wrong is named."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import load_data

WriteCifar = Callable[..., np.ndarray]


def test_cifar_is_read_from_its_folder_or_the_one_above(write_cifar: WriteCifar, tmp_path: Path) -> None:
    pictures = write_cifar(tmp_path)
    for path in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = load_data(path, 32)
        np.testing.assert_array_equal(data.pictures, pictures)
        assert data.class_names[6] == "frog" and data.name == "cifar10" and len(data.test_labels) == 6


class _Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


@pytest.mark.parametrize("damage", ["missing", "truncated", "code", "size"])
def test_damaged_cifar_is_named(write_cifar: WriteCifar, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture) -> None:
    write_cifar(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        batch.unlink()
    elif damage == "truncated":
        batch.write_bytes(batch.read_bytes()[:100])
    elif damage == "code":
        batch.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(Failure, match="image_size" if damage == "size" else "data_batch_3"):
        load_data(tmp_path, 64 if damage == "size" else 32)
    assert capsys.readouterr().out == ""


def test_a_folder_of_any_sizes_and_modes(picture_folder: Path) -> None:
    data = load_data(picture_folder, 16)
    assert data.class_names == ["blue", "green", "red"]
    assert len(data.pictures) + len(data.test_pictures) == 75 and data.pictures.shape[1:] == (3, 16, 16)
    for label, channel in ((0, 2), (1, 1), (2, 0)):
        colour = data.pictures[data.labels == label].mean(axis=(0, 2, 3))
        assert colour.argmax() == channel


@pytest.mark.parametrize("case", ["absent", "empty", "broken", "empty class"])
def test_folders_that_will_not_do(picture_folder: Path, tmp_path: Path, case: str) -> None:
    path, expected = picture_folder, "bad.png"
    if case == "absent":
        path, expected = tmp_path / "nowhere", "no such file or folder"
    elif case == "empty":
        path, expected = tmp_path / "empty", "no pictures found"
        path.mkdir()
    elif case == "broken":
        (picture_folder / "red" / "bad.png").write_bytes(b"\x89PNG no picture")
    else:
        (picture_folder / "void").mkdir()
        expected = "no readable pictures in class folder 'void'"
    with pytest.raises(Failure, match=expected) as error:
        load_data(path, 16)
    assert "\n" not in str(error.value)


def test_broken_pictures_are_named_or_skipped(picture_folder: Path) -> None:
    whole = load_data(picture_folder, 16)
    for i in range(5):
        (picture_folder / "red" / f"bad{i}.png").write_bytes(b"no picture")
    with pytest.raises(Failure, match=r"bad0.png .*bad1.png .*bad2.png .* and 2 more; .*--skip-broken"):
        load_data(picture_folder, 16)
    rest = load_data(picture_folder, 16, options={"skip_broken": True})
    np.testing.assert_array_equal(rest.pictures, whole.pictures)


def test_an_npz_is_read_at_its_size_or_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 40)
    np.savez(tmp_path / "mine.npz", pictures=pictures, labels=labels, class_names=["a", "b", "c"])
    data = load_data(tmp_path / "mine.npz", 8)
    assert data.name == "mine" and data.class_names == ["a", "b", "c"] and len(data.test_pictures) == 2
    found = {tuple(p.ravel()) for p in [*data.pictures, *data.test_pictures]}
    assert found == {tuple(p.transpose(2, 0, 1).ravel()) for p in pictures}
    assert load_data(tmp_path / "mine.npz", 16).pictures.shape == (38, 3, 16, 16)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((4, 8, 8, 3), np.uint8)}, "has no array 'labels'"),
        ({"pictures": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros(4, int)}, r"pictures must be \(N, H, W, 3\) uint8"),
        ({"pictures": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.zeros(4)}, r"labels must be \(4,\) whole numbers"),
        ({"pictures": np.array([{}]), "labels": np.zeros(1, int)}, "not readable as .npz"),
        (None, "not readable as .npz"),
    ],
)
def test_an_npz_that_will_not_do(arrays: dict | None, message: str, tmp_path: Path) -> None:
    if arrays is None:
        (tmp_path / "mine.npz").write_bytes(b"nothing of the kind")
    else:
        np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(Failure, match=message):
        load_data(tmp_path / "mine.npz", 8)


@pytest.fixture
def hugging(tmp_path: Path) -> Path:
    """A data set as `datasets` saves it, with two splits."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'cfgdiff[huggingface]'")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dark", "light"])})

    def part(n: int) -> object:
        pictures = [Image.new("RGB", (20 + i, 16), (200 * (i % 2) + i,) * 3) for i in range(n)]
        return datasets.Dataset.from_dict({"picture": pictures, "kind": [i % 2 for i in range(n)]}, features=features)

    datasets.DatasetDict({"train": part(40), "test": part(10)}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_hugging_face_data_sets(hugging: Path) -> None:
    data = load_data(hugging, 8)
    assert data.class_names == ["dark", "light"] and len(data.pictures) == 38 and len(data.test_pictures) == 2
    assert all((picture > 150).all() == bool(label) for picture, label in zip(data.pictures, data.labels, strict=True))
    with_test = load_data(hugging, 8, options={"test_split": "test"})
    assert len(with_test.pictures) == 40 and len(with_test.test_pictures) == 10
    with pytest.raises(Failure, match="no split 'dev'; choose from train, test"):
        load_data(hugging, 8, "huggingface", {"split": "dev"})


def test_hugging_face_data_without_pictures_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'cfgdiff[huggingface]'")
    datasets.Dataset.from_dict({"text": ["a"], "kind": [0]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(Failure, match=r"expected a column of type Image and one of type ClassLabel, found text, kind"):
        load_data(tmp_path / "saved", 8)
