"""Pictures of finished shards are measured as they lie there; sets of another model, or too small, are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.features import Extractor
from cfgdiff.benchmarks.from_shards import ShardSamples, check_model, first_of
from cfgdiff.cli.evaluate_shards import Source, bundle_of
from cfgdiff.runtime import Bundle, Request, generate, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.places import LocalPlace
from cfgdiff.runtime.shard_set import Recipe, ShardSet
from cfgdiff.runtime.shards import Manifest, read_manifests

SIZE, N = 200, 700


def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the channels; no logits."""
    return pictures.mean((1, 2), dtype=np.float32), np.zeros((len(pictures), 0), np.float32)


EXTRACTOR = Extractor("means", "0" * 64, False, extract)
REQUEST = Request(["c", "a"], steps=1, sampler="ddim", guidance=1.0, batch=50)


@pytest.fixture(scope="module")
def drawn(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalPlace, list[Manifest]]:
    """Four finished shards, the last one shorter."""
    folder = tmp_path_factory.mktemp("set")
    shards = ShardSet(Recipe(str(folder), str(small_bundle.path), REQUEST, N, SIZE), small_bundle)
    with open_engine(small_bundle, "cpu", precision="float32", threads=1) as engine:
        for shard in range(shards.count):
            shards.make(shard, engine)
    return LocalPlace(folder), read_manifests(LocalPlace(folder))


def test_blocks_hold_the_pictures_that_one_run_draws(
    drawn: tuple[LocalPlace, list[Manifest]], small_bundle: Bundle, tmp_path: Path
) -> None:
    place, manifests = drawn
    samples = ShardSamples(tmp_path, small_bundle, place, first_of(place, manifests, N), EXTRACTOR, None)
    watched = list[int]()
    samples.fill(Request([]), N, watch=watched.append)
    found = samples.read(Request([]), N)
    with open_engine(small_bundle, "cpu", precision="float32", threads=1) as engine:
        parts = generate(engine, small_bundle, ["c", "a"] * (N // 2), 1, 1.0, sampler="ddim", batch=50)
        pictures = np.concatenate([part for _, part in parts])
    np.testing.assert_array_equal(found.pictures, pictures)
    np.testing.assert_array_equal(found.labels, [2, 0] * (N // 2))
    np.testing.assert_array_equal(found.features, extract(pictures)[0])
    np.testing.assert_array_equal(samples.read(Request([]), 40, first=250).labels, [2, 0] * 20)
    assert watched == [256] * 3 and samples.missing(Request([]), N) == []
    protocol = samples.protocol(Request([]))
    assert (protocol["sampler"], protocol["evaluations"], protocol["guidance"]) == ("ddim", 1, 1.0)
    assert protocol["model"] == small_bundle.name and protocol["features"] == "means"


def test_shards_that_were_made_anew_are_measured_anew(
    drawn: tuple[LocalPlace, list[Manifest]], small_bundle: Bundle, tmp_path: Path
) -> None:
    place, manifests = drawn
    changed = [replace(manifests[0], sha256="f" * 64), *manifests[1:]]
    one, other = (ShardSamples(tmp_path, small_bundle, place, m, EXTRACTOR, None) for m in (manifests, changed))
    assert one.place(Request([])) != other.place(Request([]))


def test_too_few_and_missing_shards_are_refused(drawn: tuple[LocalPlace, list[Manifest]]) -> None:
    place, manifests = drawn
    assert [m.shard for m in first_of(place, manifests, SIZE + 1)] == [0, 1]
    with pytest.raises(Failure, match=rf"^{place}: expected 750 pictures, found {N}; draw more, or give `n` {N}$"):
        first_of(place, manifests, 750)
    with pytest.raises(Failure, match=r"of the first 1000 pictures, shards are missing: 4; draw them, or give another"):
        first_of(place, manifests, 1000)
    with pytest.raises(Failure, match=r"of the first 700 pictures, shards are missing: 1, 2;"):
        first_of(place, [manifests[0], manifests[3]], N)


def test_another_models_pictures_are_refused(
    drawn: tuple[LocalPlace, list[Manifest]], small_bundle: Bundle, packaged: Bundle
) -> None:
    place, manifests = drawn
    check_model(place, manifests[0], small_bundle)
    with pytest.raises(Failure, match=r"has classes a, b, c of 'small', where the bundle cifar10-small has airplane, "):
        check_model(place, manifests[0], packaged)
    with pytest.raises(Failure, match=r"has the graph ffffffffffff of 'small', where .*; give the bundle that drew it"):
        check_model(place, replace(manifests[0], model_sha256="f" * 64), small_bundle)
    with pytest.raises(Failure, match=r"has pictures \(H, W, C\) \(8, 8, 3\) of 'small'"):
        check_model(place, replace(manifests[0], shape=(8, 8, 3)), small_bundle)


def test_the_part_of_a_cascade_that_drew_a_set_is_measured(cascade: Bundle, tmp_path: Path) -> None:
    part, place = cascade.up_to(16), LocalPlace(tmp_path)
    shards = ShardSet(Recipe(str(tmp_path), str(cascade.path), REQUEST, 6, 3, height=16), cascade)
    with open_engine(part, "cpu", precision="float32", threads=1) as engine:
        made = [shards.make(shard, engine) for shard in range(2)]
        expected = np.concatenate([pictures for _, pictures in generate(engine, part, ["c", "a"] * 3, 1, 1.0, batch=3)])
    assert bundle_of(Source(place=place, shards=tuple(made)), cascade.path).picture_shape == (3, 16, 16)
    samples = ShardSamples(tmp_path / "out", part, place, first_of(place, made, 6), EXTRACTOR, None)
    samples.fill(Request([]), 6)
    np.testing.assert_array_equal(samples.read(Request([]), 6).pictures, expected)
    assert [each["precision"] for each in samples.protocol(Request([]))["stages"]] == ["float32"]
    with pytest.raises(
        Failure, match=r"has pictures \(H, W, C\) \(16, 16, 3\) of 'cascade', where .* has \(32, 32, 3\)"
    ):
        check_model(place, made[0], cascade)
    (stage,) = made[0].stage_models
    other = replace(made[0], stage_models=(stage | {"model_sha256": "f" * 64},))
    with pytest.raises(Failure, match=r"has the graph .{12}, ffffffffffff of 'cascade', where the bundle cascade has "):
        check_model(place, other, part)
