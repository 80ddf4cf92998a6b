"""A classifier learns what can be learnt, is written as it was trained, and is read back; the packaged one is what it
says."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

import torch

from cfgdiff.benchmarks.classifier import Classifier, accuracy, augmented, build, to_float, train
from cfgdiff.benchmarks.features import PACKAGED, open_classifier
from cfgdiff.cli.classifier import classifier as group
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.data import PictureSet


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 16, 16) noise with a square of the class's colour somewhere, and the classes, 0 .. 2."""
    rng = np.random.default_rng(seed)
    pictures, labels = rng.integers(0, 160, (n, 3, 16, 16), dtype=np.uint8), rng.integers(0, 3, n)
    for i, (y, x) in enumerate(rng.integers(0, 10, (n, 2))):
        pictures[i, labels[i], y : y + 6, x : x + 6] = 255
    return pictures, labels


def test_it_learns_and_is_written_as_it_is(tmp_path: Path) -> None:
    pictures, labels = coloured(1200, 0)
    np.savez(tmp_path / "data.npz", pictures=pictures.transpose(0, 2, 3, 1), labels=labels)
    made = CliRunner().invoke(
        group, ["train", str(tmp_path / "data.npz"), "--out", str(tmp_path / "c.onnx"), "--size", "16", "--epochs", "8"]
    )
    assert made.exit_code == 0 and "held-out pictures" in made.output, made.output
    found = open_classifier(tmp_path / "c.onnx", 1)
    assert found.image_shape == (3, 16, 16) and len(found.class_names) == 3 and found.accuracy is not None
    pictures, labels = coloured(300, 1)
    features, logits = found.classify(pictures.transpose(0, 2, 3, 1))
    assert features.shape[0] == 300 and logits.shape == (300, 3)
    assert (logits.argmax(1) == labels).mean() > 0.95 and found.accuracy > 0.9


def test_the_graph_is_the_network() -> None:
    torch.manual_seed(0)
    network = Classifier(1, 4, widths=(8, 16)).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16), dtype=np.uint8)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in network(to_float(pictures))]
    import onnxruntime as ort

    session = ort.InferenceSession(build(network, 16, {}).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["logits", "features"], {"pictures": to_float(pictures).numpy()})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())  # weights are stored as float16


def test_pictures_are_moved_and_mirrored_and_nothing_else() -> None:
    picture = torch.arange(64.0).reshape(1, 1, 8, 8)
    seen = augmented(picture.expand(200, 1, 8, 8), torch.arange(200) % 2 == 0, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(picture, [2] * 4, mode="reflect")[0, 0]
    allowed = [padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    turned = [
        torch.nn.functional.pad(picture.flip(3), [2] * 4, mode="reflect")[0, 0][y : y + 8, x : x + 8]
        for y in range(5)
        for x in range(5)
    ]
    for i, one in enumerate(seen[:, 0]):
        assert any(torch.equal(one, other) for other in (allowed, turned)[i % 2 == 0])
    assert len({tuple(one.flatten().tolist()) for one in seen[::2]}) > 15


def test_the_first_layer_whitens() -> None:
    pictures, _ = coloured(400, 0)
    network = Classifier(3, 3)
    network.whiten(to_float(pictures))
    with torch.no_grad():
        network.stem.bias.zero_()
        seen = network.stem(to_float(pictures))[:, :12].transpose(0, 1).flatten(1)
    np.testing.assert_allclose(np.cov(seen.numpy()), np.eye(12), atol=0.1)


def test_the_same_seed_trains_the_same() -> None:
    pictures, labels = coloured(260, 0)
    data = PictureSet("x", ["a", "b", "c"], pictures, labels, pictures[:0], labels[:0])
    first, again, other = (train(data, 1, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert 0 <= accuracy(train(data, 1, 0), pictures, labels) <= 1


def test_the_packaged_one_is_right_about_more_than_nine_in_ten() -> None:
    found = open_classifier(PACKAGED, 1)
    assert found.class_names == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    assert found.image_shape == (3, 32, 32) and found.accuracy is not None and found.accuracy > 0.9
    assert PACKAGED.stat().st_size < 2_000_000


def test_what_is_no_classifier_is_refused(tmp_path: Path, packaged: object) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    for path in (tmp_path / "absent.onnx", tmp_path / "text.onnx", packaged.path / "model.onnx"):  # type: ignore[attr-defined]
        with pytest.raises(
            Failure, match=r"^--classifier: .*: not readable as a classifier \([^\n]*\); train one with"
        ):
            open_classifier(path)
