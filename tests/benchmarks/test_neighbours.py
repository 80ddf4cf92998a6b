"""The nearest are those of a plain search, in LPIPS's space as in any other; planted copies are found."""

from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.alexnet import embedding, open_vectors, read_linear, read_weights
from cfgdiff.benchmarks.neighbours import CROWD, nearest


def test_the_nearest_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    embedded, queries, mirrored = (rng.standard_normal((n, 40)).astype(np.float32) for n in (3000, 7, 7))
    mirrored[3] = embedded[2999] + np.float32(1e-3)
    found = nearest(queries, mirrored, embedded, k=4)
    for i in range(7):
        plain = [np.square(q.astype(np.float64) - embedded).sum(1) for q in (queries[i], mirrored[i])]
        squares = np.minimum(*plain)
        order = np.argsort(squares)
        np.testing.assert_array_equal(found.indices[i], order[:4])
        np.testing.assert_allclose(found.distances[i], squares[order[:4]], rtol=1e-9)
        np.testing.assert_array_equal(found.mirrored[i], (plain[1] < plain[0])[order[:4]])
        assert found.crowd[i] == pytest.approx(squares[order[:CROWD]].mean())
    np.testing.assert_array_equal(found.copied, np.arange(7) == 3)


def test_few_pictures_are_enough() -> None:
    rng = np.random.default_rng(0)
    embedded = rng.standard_normal((3, 8)).astype(np.float32)
    found = nearest(embedded[:2], embedded[:2] + 9, embedded, k=3)
    assert found.indices.shape == (2, 3) and found.indices[:, 0].tolist() == [0, 1]
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=1e-12)


@pytest.mark.parametrize("weights", ["drawn_weights", "published"])
def test_planted_copies_are_found(weights: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    path: Path = request.getfixturevalue(weights)
    vectors = open_vectors(embedding(read_weights(path, "--alexnet"), read_linear(), 32, 32), 1)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    training = coarse.repeat(6, axis=1).repeat(6, axis=2)[:, 2:34, 2:34]  # blocks of colour
    shifted = np.concatenate([training[:10, :, 1:], training[:10, :, -1:]], 2)
    turned, others = training[10:20, :, ::-1], rng.integers(0, 256, (10, 6, 6, 3), dtype=np.uint8)
    others = others.repeat(6, axis=1).repeat(6, axis=2)[:, 2:34, 2:34]
    queries = np.concatenate([shifted, turned, others])
    found = nearest(vectors(queries), vectors(queries[:, :, ::-1]), vectors(training))
    np.testing.assert_array_equal(found.indices[:20, 0], np.arange(20))
    assert found.mirrored[10:20, 0].all() and not found.mirrored[:10, 0].any()
    np.testing.assert_allclose(found.distances[10:20, 0], 0, atol=1e-9)
    assert found.copied[10:20].all() and not found.copied[20:].any()
    assert found.distances[:10, 0].max() < found.distances[20:, 0].min()
