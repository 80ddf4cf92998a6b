"""Distances against closed forms and torch-fidelity's own."""

from types import SimpleNamespace

import numpy as np
import pytest

from cfgdiff.benchmarks.measures import (
    confusion,
    frechet,
    frechet_distance,
    gaussian,
    kernel_distance,
    precision_and_recall,
    score,
)

RNG = np.random.default_rng(0)


def covariance(f: int) -> np.ndarray:
    """A random one of full rank, (f, f)."""
    root = RNG.standard_normal((f, 2 * f))
    return root @ root.T / (2 * f)


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    mean, s = RNG.standard_normal(8), covariance(8)
    assert frechet((mean, s), (mean, s)) == pytest.approx(0, abs=1e-12)
    d = RNG.standard_normal(8)
    assert frechet((mean, s), (mean + d, s)) == pytest.approx(d @ d)
    a, b = RNG.uniform(0, 3, 8), RNG.uniform(0, 3, 8)
    assert frechet((mean, np.diag(a)), (mean, np.diag(b))) == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum())
    other = covariance(8)  # does not commute with s
    root = np.sqrt(np.linalg.eigvals(s @ other).real).sum()
    assert frechet((mean, s), (mean, other)) == pytest.approx(np.trace(s) + np.trace(other) - 2 * root)
    assert frechet((mean, s), (mean, other)) == pytest.approx(frechet((mean, other), (mean, s)))


def test_fewer_pictures_than_features_still_have_a_distance() -> None:
    features = RNG.standard_normal((5, 20)).astype(np.float32)
    mean, s = gaussian(features)
    np.testing.assert_allclose(mean, features.mean(0), atol=1e-6)
    centred = features.astype(np.float64) - mean
    np.testing.assert_allclose(s, centred.T @ centred / 4, atol=1e-12)
    d = np.full(20, 0.5)
    assert frechet(gaussian(features), gaussian(features + d)) == pytest.approx(5, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # torchvision's own deprecations
@pytest.mark.parametrize(("n", "f"), [(500, 16), (300, 256)])
def test_frechet_is_torch_fidelitys(n: int, f: int) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="needs the train extra: pip install 'cfgdiff[train]'")
    rng = np.random.default_rng(f)
    mixing = rng.standard_normal((f, f))
    a, b = rng.standard_normal((n, f)) @ mixing, rng.standard_normal((n, f)) @ mixing * 1.3 + 0.5
    statistics = [fid.fid_features_to_statistics(torch.from_numpy(features)) for features in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_quality_knows_the_same_from_other_and_from_less() -> None:
    pytest.importorskip("torch_fidelity", reason="needs the train extra: pip install 'cfgdiff[train]'")
    rng = np.random.default_rng(1)
    real, same, moved = rng.standard_normal((3, 400, 8)).astype(np.float32)
    reference, none = gaussian(real), np.zeros((400, 0), np.float32)
    distances = (frechet_distance, kernel_distance, precision_and_recall, score)

    def quality(features: np.ndarray, logits: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(
            **{k: v for distance in distances for k, v in distance(features, logits, real, reference).items()}
        )

    good, far = quality(same, none), quality(moved + 3, none)
    assert good.frechet < 0.2 and far.frechet == pytest.approx(72, rel=0.1)  # 8 x 3^2
    assert abs(good.kernel) < 0.01 < 1 < far.kernel
    assert good.precision > 0.8 and good.recall > 0.8 and far.precision < 0.1 and far.recall < 0.1
    narrow = quality(same * np.float32(0.3), none)
    assert narrow.precision > 0.9 and narrow.recall < 0.7
    assert score(same, none, real, reference) == {}
    sure = np.eye(4, dtype=np.float32)[np.arange(400) % 4] * 50
    assert quality(same, sure).score == pytest.approx(4, rel=0.05)  # of ten parts, drawn unevenly
    assert quality(same, np.zeros((400, 4), np.float32)).score == pytest.approx(1)


def test_confusion_counts_what_was_asked_by_row() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    np.testing.assert_array_equal(confusion(np.array([0, 0, 1, 2]), logits), [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
