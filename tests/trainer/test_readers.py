"""CIFAR-10's official layout, folders of pictures and .npz files: they are read exactly, and errors name the file."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import load_data

WriteCifar = Callable[..., np.ndarray]
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
NAMES = b"airplane automobile bird cat deer dog frog horse ship truck".split()


def test_cifar_is_read_from_its_folder_or_the_one_above(write_cifar: WriteCifar, tmp_path: Path) -> None:
    pictures = write_cifar(tmp_path)
    for path in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = load_data(path, 32)
        np.testing.assert_array_equal(data.pictures, pictures)
        assert data.class_names[6] == "frog" and data.name == "cifar10" and len(data.test_labels) == 6


class _Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_cifar_at_other_sizes(write_cifar: WriteCifar, tmp_path: Path) -> None:
    """Smaller by a whole number, a pixel is the mean of those that it takes the place of; else Pillow resizes."""
    pictures = write_cifar(tmp_path).reshape(-1, 3, 16, 2, 16, 2)
    half, more = load_data(tmp_path, 16), load_data(tmp_path, 24)
    assert half.pictures.dtype == np.uint8 and half.test_pictures.shape[1:] == (3, 16, 16)
    assert np.abs(half.pictures - pictures.mean((3, 5))).max() <= 0.5
    assert half.notes == ("pictures of 32x32 become 16x16",) and not load_data(tmp_path, 32).notes
    assert more.pictures.shape == (len(pictures), 3, 24, 24)
    assert more.pictures.mean() == pytest.approx(pictures.mean(), abs=1)


@pytest.mark.parametrize("damage", ["missing", "truncated", "code"])
def test_damaged_cifar_is_named(
    write_cifar: WriteCifar, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture
) -> None:
    write_cifar(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        batch.unlink()
    elif damage == "truncated":
        batch.write_bytes(batch.read_bytes()[:100])
    elif damage == "code":
        batch.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(Failure, match="data_batch_3"):
        load_data(tmp_path, 32)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "tree", "message"),
    [
        ("batches.meta", [b"label_names"], "expected a dictionary with 'label_names', found list"),
        ("batches.meta", {b"names": NAMES}, "expected a dictionary with 'label_names', found dict"),
        ("batches.meta", {b"label_names": NAMES[:9]}, "label_names must be ten words"),
        ("batches.meta", {b"label_names": 5}, "label_names must be ten words, found 5"),
        ("batches.meta", {b"label_names": [b"\xff"] * 10}, "label_names must be ten words"),
        ("batches.meta", {b"label_names": [b"cat"] * 10}, "class_names must be different words"),
        ("data_batch_3", 5, "expected a dictionary with 'data' and 'labels', found int"),
        ("data_batch_3", {b"data": np.zeros((2, 3072), np.uint8)}, "expected a dictionary with 'data' and 'labels'"),
        (
            "data_batch_3",
            {b"data": [1, 2], b"labels": [1, 2]},
            r"data must be \(N, 3072\) uint8, 32x32 pictures, found list",
        ),
        (
            "data_batch_3",
            {b"data": np.zeros((2, 1024), np.uint8), b"labels": [1, 2]},
            r"data must be \(N, 3072\).*found \(2, 1024\) uint8",
        ),
        ("data_batch_3", {b"data": np.zeros((3072,), np.uint8), b"labels": [1]}, r"data must be \(N, 3072\)"),
        (
            "data_batch_3",
            {b"data": np.zeros((2, 3072)), b"labels": [1, 2]},
            r"data must be .*found \(2, 3072\) float64",
        ),
        (
            "test_batch",
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
            r"labels must be 2 whole numbers of 0 \.\. 9, found \[1\]",
        ),
        (
            "test_batch",
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10**30]},
            "labels must be 2 whole numbers",
        ),
        (
            "test_batch",
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": ["a", None]},
            "labels must be 2 whole numbers",
        ),
    ],
)
def test_a_cifar_file_of_other_contents_is_named(
    file: str, tree: object, message: str, write_cifar: WriteCifar, tmp_path: Path
) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(tree, protocol=2))
    with pytest.raises(Failure, match=message) as error:
        load_data(tmp_path, 32)
    assert "\n" not in str(error.value) and (file in str(error.value) or "class_names" in message)


@pytest.mark.parametrize(
    "data", [b"", b"nothing", b"\x80\x02(", b"\x80\x02]q\x00(K\x01R.", b"\x80\x02K\x01b.", bytes(50), b"\x80\x02h\x63."]
)
def test_a_poisoned_pickle_is_one_line(data: bytes, write_cifar: WriteCifar, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(data)
    with pytest.raises(Failure, match=r"data_batch_2: is not a CIFAR-10 batch \(.+\); unpack the archive") as error:
        load_data(tmp_path, 32)
    assert "\n" not in str(error.value)


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
    with pytest.raises(Failure, match=r"bad0.png .*bad1.png .*bad2.png .* and 2 more; .*with `skip_broken`"):
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


def test_classes_of_an_npz_without_a_picture_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", pictures=PICTURES, labels=[0, 3, 3, 0])
    data = load_data(tmp_path / "mine.npz", 8)
    assert data.class_names == ["0", "1", "2", "3"] and data.notes == ("2 classes without a picture: 1, 2",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:60] + bytes(40) + data[100:],  # the header's text
        lambda data: data.replace(b"(4, 8, 8, 3)", b"(4, 8,((((((("),
        lambda data: data.replace(b"'shape': (4, 8, 8, 3)", b"'shape': (9**9,)+(3,)"),
        lambda data: data.replace(b"(4, 8, 8, 3), }      ", b"(99999999999, 999), }"),
        lambda data: data[: len(data) // 2],
        lambda data: b"PK\x03\x04" + bytes(300),
        lambda data: b"\x93NUMPY\x01\x00" + bytes(300),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_one_line(damage: Callable[[bytes], bytes], save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "mine.npz", pictures=PICTURES, labels=np.arange(4))
    before = (tmp_path / "mine.npz").read_bytes()
    damaged = damage(before)
    if damaged == before:  # the text is not there where all is compressed
        damaged = before[:70] + bytes([before[70] ^ 255]) + before[71:]
    (tmp_path / "mine.npz").write_bytes(damaged)
    with pytest.raises(Failure, match=r"mine\.npz: not readable as \.npz \(.+\); write it with numpy\.savez$") as error:
        load_data(tmp_path / "mine.npz", 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((4, 8, 8, 3), np.uint8)}, "has no array 'labels'"),
        (
            {"pictures": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros(4, int)},
            r"pictures must be \(N, H, W, 3\) uint8",
        ),
        ({"pictures": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.zeros(4)}, r"labels must be \(4,\) whole numbers"),
        ({"pictures": np.array([{}]), "labels": np.zeros(1, int)}, "not readable as .npz"),
        (
            {"pictures": PICTURES, "labels": np.array([0, 1, 10**15, 2])},
            r"labels must lie in 0 \.\. 65535, found 1000000000000000",
        ),
        ({"pictures": PICTURES, "labels": np.array([2**64 - 1] * 4, np.uint64)}, "labels must lie in"),
        (
            {"pictures": PICTURES, "labels": np.arange(4), "class_names": ["a", "b"]},
            r"labels must lie in 0 \.\. 1, found 3",
        ),
        (
            {"pictures": PICTURES, "labels": np.zeros(4, int), "class_names": np.array("cat")},
            r"class_names must be \(K,\) words, found \(\)",
        ),
        (
            {"pictures": PICTURES, "labels": np.zeros(4, int), "class_names": np.array([1.5])},
            r"class_names must be \(K,\) words",
        ),
        (
            {"pictures": PICTURES, "labels": np.zeros(4, int), "class_names": ["a", "a"]},
            "class_names must be different words",
        ),
        ({"pictures": PICTURES[:, :0], "labels": np.zeros(4, int)}, r"pictures must be \(N, H, W, 3\) uint8"),
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
