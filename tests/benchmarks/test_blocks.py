"""Samples by blocks: what is there is not drawn again, and shards make the same set as one run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.blocks import BLOCK, Sampling
from cfgdiff.benchmarks.features import Extractor
from cfgdiff.runtime import Bundle, Engine, Request, Stage, generate
from cfgdiff.runtime.cascade import Cascade
from cfgdiff.runtime.errors import BadInput, Failure


class Fake:
    """An engine that answers at once, and counts its calls."""

    name, precision, max_batch, calls = "fake", "float32", 4096, 0

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        """0.3 x plus something of the class."""
        self.calls += 1
        return (np.float32(0.3) * sample + class_label[:, None, None, None] / np.float32(10)).astype(np.float32)

    def close(self) -> None:
        """Nothing."""


def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the channels; no logits."""
    return pictures.mean((1, 2), dtype=np.float32), np.zeros((len(pictures), 0), np.float32)


def sampling(folder: Path, bundle: Bundle, engine: Engine | None = None) -> Sampling:
    return Sampling(folder, bundle, engine or Fake(), Extractor("means", "0" * 64, False, extract), None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FAST = Request([], steps=2, guidance=1.0, sampler="ddim")


def test_samples_are_those_of_generate_with_their_features(small_bundle: Bundle, tmp_path: Path) -> None:
    one = sampling(tmp_path, small_bundle)
    one.fill(FAST, 300)
    found = one.read(FAST, 300)
    assert (
        found.pictures.shape == (300, 16, 16, 3) and found.logits.shape == (300, 0) and found.scores.shape == (300, 0)
    )
    np.testing.assert_array_equal(found.labels, np.arange(300) % 3)
    expected = generate(Fake(), small_bundle, [i % 3 for i in range(300)], 2, 1.0, sampler="ddim")
    np.testing.assert_array_equal(found.pictures, np.concatenate([part for _, part in expected]))
    np.testing.assert_array_equal(found.features, extract(found.pictures)[0])
    later = one.read(FAST, 40, first=250)
    np.testing.assert_array_equal(later.pictures, found.pictures[250:290])
    np.testing.assert_array_equal(later.labels, found.labels[250:290])


def test_four_shards_make_the_same_set_as_one_run(small_bundle: Bundle, tmp_path: Path) -> None:
    n = 5 * BLOCK - 10
    sampling(tmp_path / "one", small_bundle).fill(FAST, n)
    for k in (3, 1, 4, 2):  # each where nothing of the others is, as on another machine
        sampling(tmp_path / f"shard{k}", small_bundle).fill(FAST, n, (k, 4))
    merged = {}
    for k in range(1, 5):
        merged |= contents(tmp_path / f"shard{k}")
    assert merged == contents(tmp_path / "one") and len(merged) == 5 + 1


def test_what_is_there_is_not_drawn_again(small_bundle: Bundle, tmp_path: Path) -> None:
    first = Fake()
    sampling(tmp_path, small_bundle, first).fill(FAST, 600)
    before = contents(tmp_path)
    assert first.calls > 0
    again = Fake()
    one = sampling(tmp_path, small_bundle, again)
    one.fill(FAST, 600)
    assert again.calls == 0 and contents(tmp_path) == before
    next(tmp_path.rglob("block-000001.npz")).unlink()
    assert one.missing(FAST, 600) == [1]
    one.fill(FAST, 600)
    assert 0 < again.calls < first.calls and contents(tmp_path) == before


def test_other_settings_and_other_features_have_a_place_of_their_own(small_bundle: Bundle, tmp_path: Path) -> None:
    one = sampling(tmp_path, small_bundle)
    other = Sampling(tmp_path, small_bundle, Fake(), Extractor("means", "1" * 64, False, extract), None)
    places = {one.place(FAST), one.place(Request([], 2, 3, sampler="ddim")), one.place(Request([], 2, 1.0, 1, "ddim")),
              one.place(Request([], 2, 2.0, sampler="ddim", interval=(0.1, 3.0))), other.place(FAST)}  # fmt: skip
    assert len(places) == 5
    with pytest.raises(BadInput, match=r"^sampler: no sampler"):
        one.place(Request([], sampler="dimm"))


def test_a_damaged_block_is_named(small_bundle: Bundle, tmp_path: Path) -> None:
    one = sampling(tmp_path, small_bundle)
    one.fill(FAST, 10)
    file = next(tmp_path.rglob("block-000000.npz"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Failure, match=r"block-000000\.npz: not readable \(.*\); remove it, and it is drawn again$"):
        one.read(FAST, 10)
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"--out: .* cannot be made"):
        sampling(tmp_path / "file", small_bundle).fill(FAST, 10)


class FakeStage(Fake):
    """The same of a super-resolution stage, to which it adds a little of the smaller picture."""

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
                *condition: np.ndarray) -> np.ndarray:  # fmt: skip
        return super().predict(sample, timestep, class_label, guidance) + condition[0] / np.float32(8)


def test_samples_of_a_cascade_are_kept_apart_by_the_settings_of_its_stages(cascade: Bundle, tmp_path: Path) -> None:
    engine = Cascade([Fake(), FakeStage(), FakeStage()])
    one, plain, other = sampling(tmp_path, cascade, engine), FAST, replace(FAST, stages=[Stage(noise=30), Stage()])
    assert one.place(plain) != one.place(other) and one.evaluations(plain) == 2 + 3 + 2
    stages = one.protocol(other)["stages"]
    assert [entry["noise"] for entry in stages] == [30, 100.0] and [entry["evaluations"] for entry in stages] == [3, 2]
    assert stages[0]["model sha256"] != stages[1]["model sha256"]
    rows = list[int]()
    one.fill(plain, 8, watch=rows.append)
    found = one.read(plain, 8).pictures
    expected = generate(engine, cascade, [i % 3 for i in range(8)], 2, 1.0, sampler="ddim")
    assert np.array_equal(found, next(expected)[1]) and found.shape == (8, 32, 32, 3)
    assert sum(rows) == BLOCK * one.evaluations(plain)
