"""Statistics of the parts of a set, merged, are those of the whole; files of other things are refused in a line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.features import Classifier, Extractor
from cfgdiff.benchmarks.from_shards import drawn_with
from cfgdiff.benchmarks.measures import frechet, gaussian
from cfgdiff.benchmarks.moments import (
    Moments,
    Statistics,
    load_statistics,
    measure_shards,
    merge_files,
    selected,
)
from cfgdiff.runtime import Bundle, Engine, Request, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.places import LocalPlace
from cfgdiff.runtime.shard_set import Recipe, ShardSet
from cfgdiff.runtime.shards import Manifest, read_manifests, read_shard

RNG = np.random.default_rng(1)
FEATURES = (RNG.standard_normal((1000, 12)) @ RNG.standard_normal((12, 12)) + 1000).astype(np.float32)


def test_merged_moments_are_those_of_all_also_far_from_zero() -> None:
    """Sums of squares would lose ten of sixteen digits here."""
    mean, covariance = gaussian(FEATURES)
    whole = Moments.of(FEATURES)
    for cuts in ([500], [1, 2, 990], [250, 500, 750]):
        merged, *others = (Moments.of(part) for part in np.split(FEATURES, cuts))
        for other in others:
            merged = merged.merged(other)
        assert merged.count == 1000
        for found in (merged, whole):
            np.testing.assert_allclose(found.gaussian[0], mean, rtol=1e-12)
            np.testing.assert_allclose(found.gaussian[1], covariance, rtol=0, atol=1e-12 * np.abs(covariance).max())


def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a 2x2 grid; no logits."""
    return pictures[:, ::8, ::8].reshape(len(pictures), -1).astype(np.float32), np.zeros((len(pictures), 0), np.float32)


EXTRACTOR = Extractor("pixels", "0" * 64, False, extract)
SIZE, N = 40, 4 * 40 - 7


def classify(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By brightness."""
    seen = pictures.mean((1, 2, 3)).astype(int) % 3
    return np.zeros((len(pictures), 0), np.float32), np.eye(3, dtype=np.float32)[seen]


@pytest.fixture(scope="module")
def place(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> LocalPlace:
    """Four finished shards, the last one shorter."""
    folder = tmp_path_factory.mktemp("set")
    request = Request(["c", "a"], steps=1, sampler="ddim", guidance=1.0, batch=16)
    drawn, engine = (
        ShardSet(Recipe(str(folder), str(small_bundle.path), request, N, SIZE), small_bundle),
        open_small(small_bundle),
    )
    for shard in range(drawn.count):
        drawn.make(shard, engine)
    return LocalPlace(folder)


def open_small(bundle: Bundle) -> Engine:
    return open_engine(bundle, "cpu", precision="float32", threads=1)


@pytest.fixture
def measure(place: LocalPlace, small_bundle: Bundle) -> Callable[..., Statistics]:
    """A function (path, share, n) that measures a share of the first n pictures into a file."""
    judge = Classifier(small_bundle.class_names, None, small_bundle.image_shape, "1" * 64, classify)
    manifests = read_manifests(place)

    def run(path: Path, share: tuple[int, int] = (1, 1), n: int | None = None) -> Statistics:
        protocol = drawn_with(manifests[0]) | {"n": n}
        return measure_shards(path, place, selected(manifests, n, share), protocol, EXTRACTOR, judge)

    return run


@pytest.mark.parametrize("n", [None, 3 * SIZE - 11])
def test_statistics_of_four_shards_merged_are_those_of_one_run(
    n: int | None, place: LocalPlace, measure: Callable[..., Statistics], tmp_path: Path
) -> None:
    shares = 4 if n is None else 3
    for k in range(1, shares + 1):
        measure(tmp_path / f"part-{k}.npz", (k, shares), n)
    merged = merge_files([tmp_path / f"part-{k}.npz" for k in range(1, shares + 1)])
    whole = measure(tmp_path / "whole.npz", n=n)
    read = [read_shard(place, manifest) for manifest in read_manifests(place)]
    pictures, labels = (np.concatenate(arrays)[:n] for arrays in zip(*read, strict=True))
    assert merged.moments.count == whole.moments.count == len(pictures) == (n or N)
    assert list(merged.shards) == list(range(shares)) and merged.shards == whole.shards
    reference = gaussian(FEATURES)
    reference = reference[0][:12] / 10, reference[1]
    exact = frechet(gaussian(extract(pictures)[0]), reference)
    for found in (merged, whole):
        for ours, theirs in zip(found.moments.gaussian, gaussian(extract(pictures)[0]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
        assert frechet(found.moments.gaussian, reference) == pytest.approx(exact, rel=1e-9)
        assert found.accuracy == (labels == pictures.mean((1, 2, 3)).astype(int) % 3).mean()


def test_a_file_is_continued_shard_by_shard(
    place: LocalPlace, measure: Callable[..., Statistics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, read = measure(tmp_path / "whole.npz"), list[int]()

    def counting(place: LocalPlace, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
        read.append(manifest.shard)
        if len(read) == 3:
            raise KeyboardInterrupt
        return read_shard(place, manifest)

    monkeypatch.setattr("cfgdiff.benchmarks.moments.read_shard", counting)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "parts.npz")
    assert list(load_statistics(tmp_path / "parts.npz").shards) == [0, 1]
    measure(tmp_path / "parts.npz")
    assert read == [0, 1, 2, 2, 3]
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert whole.moments.count == N


def test_what_does_not_belong_together_is_refused(measure: Callable[..., Statistics], tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    first = measure(a, (1, 2))
    measure(b, (1, 4))
    with pytest.raises(Failure, match=rf"^{b}: counts shard 0, as {a} does; leave one of them out$"):
        merge_files([a, b])
    replace(first, protocol=first.protocol | {"seed": 7}, shards={9: "x"}).save(b)
    with pytest.raises(Failure, match=rf"^{b}: has seed 7, where {a} has 0; measure all parts alike$"):
        merge_files([a, b])
    with pytest.raises(Failure, match=rf"^{b}: has statistics of another set, model or way to measure"):
        measure(b)
    replace(first, shards=first.shards | {0: "changed"}).save(b)
    with pytest.raises(Failure, match=r"shard 0 was made anew since; remove the file"):
        measure(b, (1, 2))
    b.write_bytes(a.read_bytes()[:300])
    with pytest.raises(Failure, match=rf"^{b}: not readable as statistics"):
        load_statistics(b)
    with pytest.raises(Failure, match=r"none of its shards is in this share"):
        measure(tmp_path / "none.npz", (9, 9))
