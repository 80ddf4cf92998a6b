"""Which features are taken, under which name; and that what was measured once is kept."""

from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks import features
from cfgdiff.benchmarks.alexnet import read_weights
from cfgdiff.benchmarks.features import (
    PACKAGED,
    Classifier,
    Extractor,
    choose_features,
    find_classifier,
    inception_features,
    kept,
    open_classifier,
    rgb,
)
from cfgdiff.benchmarks.measures import frechet, gaussian
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure


def offline() -> Extractor:
    raise Failure("--features inception: its weights cannot be fetched (no network); connect once")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """The packaged one."""
    return open_classifier(PACKAGED, 1)


def test_offline_a_stand_in_is_taken_and_said(
    classifier: Classifier, drawn_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "inception_features", offline)
    weights = read_weights(drawn_weights, "--alexnet")
    found, told = choose_features("auto", weights, classifier)
    assert found.name.startswith("AlexNet") and not found.inception
    assert (
        "cannot be fetched (no network)" in told
        and "In place of Inception: AlexNet" in told
        and "no distance here is FID" in told
    )
    found, told = choose_features("auto", None, classifier)
    assert (
        found.name.startswith("classifier of 10 classes")
        and not found.inception
        and "In place of Inception: classifier" in told
    )
    with pytest.raises(Failure, match=r"^--features: none available: .*no network.*--alexnet FILE.*--classifier"):
        choose_features("auto", None, None)


def test_what_was_asked_for_is_taken_or_refused(
    classifier: Classifier, drawn_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "inception_features", offline)
    assert (
        choose_features("classifier", None, classifier)[1]
        == choose_features("alexnet", read_weights(drawn_weights, "x"), None)[1]
        == ""
    )
    for kind, message in (
        ("inception", "cannot be fetched"),
        ("alexnet", "give --alexnet FILE"),
        ("classifier", "train one"),
    ):
        with pytest.raises(Failure, match=f"^--features {kind}: .*{message}"):
            choose_features(kind, None, None)
    wanted = Extractor("Inception", "0", True, lambda pictures: (pictures, pictures))
    monkeypatch.setattr(features, "inception_features", lambda: wanted)
    assert choose_features("auto", None, None) == (wanted, "")


@pytest.mark.filterwarnings("ignore")  # torchvision's own deprecations
def test_inceptions_features_are_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs the train extra: pip install 'cfgdiff[train]'"
    )

    def drawn(url: str, progress: bool) -> dict[str, object]:
        """Random weights in place of those that need a network."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.rand(p.shape, generator=generator) * 0.05 if p.is_floating_point() else p
            for name, p in shapes.items()
        }

    shapes: dict[str, object] = {}
    real_load = module.FeatureExtractorInceptionV3.load_state_dict
    monkeypatch.setattr(module, "load_state_dict_from_url", drawn)

    def load(self: object, state: dict[str, object]) -> None:
        shapes.update(self.state_dict())  # type: ignore[attr-defined]
        real_load(self, drawn("", False))

    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", load)
    found = inception_features()
    assert found.inception and len(found.sha256) == 64
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    got, logits = found.extract(pictures)
    assert got.shape == (3, 2048) and logits.shape == (3, 1008)
    peer = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    expected = peer(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_no_network_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs the train extra: pip install 'cfgdiff[train]'"
    )

    def fail(url: str, progress: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(module, "load_state_dict_from_url", fail)
    with pytest.raises(
        Failure, match=r"^--features inception: its weights cannot be fetched \(no route to host\); connect once"
    ):
        inception_features()


def test_real_pictures_are_nearer_to_each_other_than_to_noise(classifier: Classifier) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (600, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    noise = rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    one, other, far = (gaussian(classifier.classify(pictures)[0]) for pictures in (coarse[:300], coarse[300:], noise))
    assert frechet(one, one) < 1e-3 * frechet(one, other) and frechet(one, other) < frechet(one, far) / 3


def test_features_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "ROWS", 4)
    pictures, calls, seen = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8), [], []

    def vectors(part: np.ndarray) -> np.ndarray:
        calls.append(part.shape)
        return part.mean((1, 2), dtype=np.float32)

    found = kept(pictures, vectors, "a", seen.append)
    np.testing.assert_array_equal(found, pictures.transpose(0, 2, 3, 1).mean((1, 2), dtype=np.float32))
    assert calls == [(4, 8, 8, 3), (4, 8, 8, 3), (2, 8, 8, 3)] and seen == [4, 4, 2]
    np.testing.assert_array_equal(kept(pictures, vectors, "a"), found)
    assert len(calls) == 3
    kept(pictures, vectors, "b")
    kept(pictures + np.uint8(1), vectors, "a")
    assert len(calls) == 9 and len(list(tmp_path.rglob("*.npy"))) == 3

    def broken(part: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(pictures, broken, "c")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Failure, match=r"cannot keep the features of pictures .* set XDG_CACHE_HOME"):
        kept(pictures, vectors, "a")


def test_a_classifier_of_other_classes_is_not_taken(packaged: Bundle, small_bundle: Bundle) -> None:
    found, told = find_classifier(packaged, None)
    assert found is not None and told == ""
    found, told = find_classifier(small_bundle, None)
    assert found is None and told.startswith("No class accuracy: ")
    with pytest.raises(
        Failure,
        match=r"^--classifier .*cifar10.onnx: is of \(3, 32, 32\) pictures of airplane, .*; "
        r"expected \(3, 16, 16\) of a, b, c$",
    ):
        find_classifier(small_bundle, PACKAGED)


def test_grey_pictures_become_three_channels() -> None:
    grey = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    assert rgb(grey).shape == (2, 2, 2, 3) and (rgb(grey) == grey).all()
    coloured = grey.repeat(3, axis=3)
    assert rgb(coloured) is coloured
