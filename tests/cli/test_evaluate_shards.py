"""`cfgdiff eval --from`: reports and statistics of pictures that are there, and mistakes in one line."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch_fidelity", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import features
from cfgdiff.benchmarks.moments import load_statistics
from cfgdiff.cli.evaluate import evaluate
from cfgdiff.cli.main import group
from cfgdiff.runtime import Bundle, Request, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.shard_set import Recipe, ShardSet

SIZE, N = 40, 160


@pytest.fixture(scope="module")
def made(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four finished shards, and real pictures beside it."""
    folder = tmp_path_factory.mktemp("made")
    request = Request(["a", "b", "c"], steps=1, sampler="ddim", guidance=1.0, batch=40)
    shards = ShardSet(Recipe(str(folder / "set"), str(small_bundle.path), request, N, SIZE), small_bundle)
    with open_engine(small_bundle, "cpu", precision="float32", threads=1) as engine:
        for shard in range(shards.count):
            shards.make(shard, engine)
    pictures = np.random.default_rng(2).integers(0, 256, (120, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(folder / "real.npz", pictures=pictures, labels=np.arange(120) % 3, class_names=["a", "b", "c"])
    return folder


@pytest.fixture
def call(made: Path, small_bundle: Bundle, drawn_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that runs `cfgdiff eval BUNDLE` with AlexNet's features in a folder of the test."""

    def unavailable() -> None:
        raise Failure("no network")

    def run(*words: object) -> Result:
        command = [str(small_bundle.path), "--alexnet", drawn_weights, "--threads", "1", *words]
        return CliRunner().invoke(evaluate, list(map(str, command)))

    monkeypatch.setattr(features, "inception_features", unavailable)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "set", tmp_path / "set")
    shutil.copy(made / "real.npz", tmp_path / "real.npz")
    return run


def test_a_report_of_shards_and_the_same_distance_from_merged_statistics(call: partial, tmp_path: Path) -> None:
    whole = call("--from", "set", "--data", "real.npz", "--n", N, "--out", "out")
    assert whole.exit_code == 0, (whole.output, whole.exception)
    page, report = (tmp_path / "out" / name for name in ("report.html", "report.json"))
    assert "samples: b" in page.read_text() and "Between two latents" not in page.read_text()
    expected = json.loads(report.read_text())
    assert expected["n"] == N and expected["protocol"]["sampler"] == "ddim" and expected["sweep"] == []
    for k in range(1, 5):
        part = call("--from", "set", "--shard", f"{k}/4", "--stats", f"part-{k}.npz")
        assert part.exit_code == 0 and part.stdout == f"part-{k}.npz: {SIZE} pictures of 1 shards\n", part.exception
    merged = call("--from", "part-*.npz", "--data", "real.npz", "--n", N, "--out", "merged")
    assert merged.exit_code == 0 and merged.stdout.startswith("merged/report.json: Fréchet distance "), merged.exception
    found = json.loads((tmp_path / "merged" / "report.json").read_text())
    # features of a picture differ in float32's last bits with the number of pictures in a call, as blocks are other
    assert found["quality"]["frechet"]["mean"] == pytest.approx(expected["quality"]["frechet"]["mean"], rel=1e-5)
    assert found["held-out pictures"]["frechet"] == expected["held-out pictures"]["frechet"]
    assert found["n"] == N and found["called"] == {"frechet": "Fréchet distance"}
    one = call("--from", "set", "--stats", "one.npz")
    again = call("--from", "one.npz", "--data", "real.npz", "--out", "again")
    assert one.exit_code == again.exit_code == 0, again.exception
    single = json.loads((tmp_path / "again" / "report.json").read_text())["quality"]["frechet"]["mean"]
    assert found["quality"]["frechet"]["mean"] == pytest.approx(single, rel=1e-9)


def test_missing_parts_are_noted_and_too_few_pictures_refused(call: partial, tmp_path: Path) -> None:
    for k in (1, 4):
        assert call("--from", "set", "--shard", f"{k}/4", "--stats", f"part-{k}.npz").exit_code == 0
    merged = call("--from", "part-*.npz", "--data", "real.npz", "--out", "out")
    assert merged.exit_code == 0, merged.exception
    assert json.loads((tmp_path / "out" / "report.json").read_text())["notes"][-1] == "Without shards 1, 2."
    short = call("--from", "part-*.npz", "--data", "real.npz", "--n", 160)
    assert "expected 160 pictures in all files together, found 80; add the rest" in str(short.exception)


def test_a_damaged_shard_is_named(call: partial, tmp_path: Path) -> None:
    tar = tmp_path / "set" / "shard-000002.tar"
    data = bytearray(tar.read_bytes())
    data[700:720] = bytes(20)
    tar.write_bytes(data)
    found = call("--from", "set", "--stats", "part.npz")
    assert isinstance(found.exception, Failure) and str(found.exception).startswith(f"{Path('set') / tar.name}: ")
    assert list(load_statistics(tmp_path / "part.npz").shards) == [0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stats", "a.npz"], "--stats: sums up the pictures of finished shards, found no --from DEST"),
        (["--from", "set", "--steps", "2"], "--steps: has no effect with --from: the pictures are there"),
        (["--from", "set", "--store"], "--store: has no effect with --from"),
        (["--from", "a.npz", "--shard", "1/2"], "--shard: has no effect with --from: statistics hold no pictures"),
        (["--from", "a.npz", "--stats", "b.npz"], "--stats: is written from shards, but --from names statistics"),
        (["--from", "a.npz"], "a.npz: no such file; expected what --stats wrote, as 'part-*.npz'"),
        (["--from", "absent"], "absent: holds no finished shard"),
        (["--from", "set", "--n", "500"], "set: of the first 500 pictures, shards are missing: 4, 5, 6, 7, 8, 9"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, call: partial) -> None:
    made = call(*words)
    said = str(made.exception) if isinstance(made.exception, Failure) else made.output
    assert made.exit_code != 0 and message in said.replace("\n", " "), said


def test_the_bundle_is_that_of_the_shards(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    unnamed = CliRunner().invoke(group, ["eval", "--from", "set"])
    assert str(unnamed.exception) == "--from set: was drawn by 'small'; give its bundle"
    other = CliRunner().invoke(group, ["eval", "cifar10-turbo", "--from", "set"])
    assert "set: has classes a, b, c of 'small', where the bundle cifar10-turbo has airplane" in str(other.exception)
