"""A cascade on the command line: pictures of every size, notes, reports, certificates, and what refuses it by name."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stages import STEPS, random_model

from cfgdiff.cli.main import main as cfgdiff
from cfgdiff.cli.run import main as run
from cfgdiff.runtime import Bundle, draw, load_bundle, open_engine
from cfgdiff.runtime.engines import ENGINES
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import grid, read_note
from cfgdiff.runtime.notes import model_digest
from cfgdiff.runtime.places import open_place, sha256_of
from cfgdiff.runtime.shards import read_manifests, read_shard


@pytest.fixture
def call(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function (main, words, exit code) that gives what a command printed on both streams."""
    monkeypatch.chdir(tmp_path)

    def call(main: Callable[..., None], *words: object, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert stopped.value.code == code, err
        return out, err

    return call


@pytest.fixture
def drawn(call: Callable[..., Any], cascade: Bundle) -> Callable[..., tuple[str, str]]:
    """cfgdiff-run on the CPU engine."""
    on_cpu = ("--engine", "cpu", "--precision", "float32", "--threads", 1)
    return lambda *words, **code: call(run, "--model", cascade.path, "--class", "all", *on_cpu, *words, **code)


def test_pictures_of_every_size_and_what_they_cost(drawn: Callable[..., Any], cascade: Bundle) -> None:
    for size, count in ((8, 1), (16, 2), (32, 3)):
        report = json.loads(drawn("--n", 4, "--size", size, "--out", f"{size}.npz", "--json")[0])
        with np.load(f"{size}.npz") as arrays:
            assert arrays["pictures"].shape == (4, size, size, 3)
        stages = report.get("stages", [])
        assert [entry["size"] for entry in stages] == [8, 16, 32][:count] * (count > 1)
        assert [entry["steps"] for entry in stages] == list(STEPS[:count]) * (count > 1)
        if count > 1:
            assert report["rows"] == sum(entry["rows"] for entry in stages)
            costs = [entry["rows"] * model.gmac for entry, model in zip(stages, cascade.models, strict=False)]
            assert report["gmac"] == pytest.approx(sum(costs), abs=0.01)
            assert stages[1]["rows"] == 4 * 2 * STEPS[1]  # guided
    with open_engine(cascade, "cpu", "float32", threads=1) as engine:
        expected = draw(cascade, ["a", "b", "c", "a"], engine)
    with np.load("32.npz") as arrays:
        assert np.array_equal(arrays["pictures"], expected)
    assert drawn("--n", 2, "--size", 64, "--out", "x", code=2)[1] == (
        "Error: --size: cascade draws pictures of 8, 16, 32, found 64; take one of these\n"
    )


def test_a_row_of_a_stage_is_counted_as_pytorch_counts_it(cascade: Bundle) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model(32, 4)
    x, t = torch.zeros(1, 3, 32, 32), torch.zeros(1)
    with FlopCounterMode(display=False) as counter:
        model.network(x, t, torch.zeros(1, dtype=torch.int64), x, t)
    assert cascade.stages[1].gmac == pytest.approx(counter.get_total_flops() / 2e9, abs=1e-6)


def test_settings_of_stages_are_noted_and_remade(
    drawn: Callable[..., Any], call: Callable[..., Any], cascade: Bundle
) -> None:
    words = ("--n", 3, "--stage-steps", "5,2", "--stage-guidance", 1, "--stage-noise", "20,300", "--seed", 5)
    drawn(*words, "--out", "a")
    note = read_note(Path("a/0001.png"))
    assert note["stages"] == [
        {"steps": 5, "guidance": 1.0, "sampler": "ddim", "noise": 20.0},
        {"steps": 2, "guidance": 1.0, "sampler": "ddim", "noise": 300.0},
    ]
    assert [entry["engine"] for entry in note["stage_models"]] == ["cpu", "cpu"]
    model = ("--model", cascade.path)
    assert "the same pixels (cpu, float32" in call(run, *model, "--remake", "a/0001.png", "--out", "again.png")[1]
    drawn("--n", 1, "--size", 8, "--out", "small")
    assert "the same pixels" in call(run, *model, "--remake", "small/0000.png", "--out", "again.png")[1]
    assert "stages" not in read_note(Path("small/0000.png"))


def test_an_interrupted_folder_and_a_tar(drawn: Callable[..., Any]) -> None:
    drawn("--n", 4, "--batch", 2, "--out", "a")
    whole = {path.name: path.read_bytes() for path in Path("a").glob("0*.png")}
    Path("a/0003.png").unlink()
    assert "2 were there" in drawn("--n", 4, "--batch", 2, "--out", "a", "--resume")[1]
    assert {path.name: path.read_bytes() for path in Path("a").glob("0*.png")} == whole
    assert "give the same --size" in drawn("--n", 4, "--size", 16, "--out", "a", "--resume", code=1)[1]
    drawn("--n", 4, "--batch", 2, "--out", "a.tar")
    shutil.unpack_archive("a.tar", "unpacked")
    for name, data in whole.items():
        assert (Path("unpacked") / f"00{name}").read_bytes() == data


def test_an_interpolation_and_its_gif(call: Callable[..., Any], cascade: Bundle) -> None:
    words = ("--model", cascade.path, "--class", "a,b", "--interpolate", "1:2", "--frames", 3)
    call(run, *words, "--out", "x.png")
    with Image.open("x.png") as row:
        assert row.size[0] > 3 * 32 > row.size[1]
    call(run, *words, "--out", "x.gif")
    with Image.open("x.gif") as frames:
        assert frames.n_frames == 4 and frames.size == (36, 36)  # with its border


REFUSED = [
    (("--out", "x.gif"), "--out: shows how one network denoises, but cascade is a cascade; leave it out, or take the "
     "base alone with --size 8"),
    (("--stream",), "--stream: shows how one network denoises, but cascade is a cascade; leave it out, or take the "
     "base alone with --size 8"),
    (("--from", "p.png"), "--from: cascade is a cascade, which edits no pictures; take its base alone, by its --size"),
    (("--stage-steps", "1,2,3"), "--stage-steps: expected 1 or 2 numbers, one for each stage, found 3"),
    (("--stage-steps", "0"), "--stage-steps: expected 1 or more, a whole number, found 0"),
    (("--stage-noise", "900"), "--stage-noise: cascade-1 was trained for 0 .. 500, found 900; take less"),
    (("--size", "8", "--stage-noise", "9"), "--stage-noise: is for the stages of a cascade, found none; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_a_cascade_cannot_do_is_one_line(drawn: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    Image.new("RGB", (8, 8)).save("p.png")
    *_, line = drawn("--n", 1, *words, code=2)[1].strip().splitlines()
    assert line == f"Error: {message}"


def test_commands_for_one_network_refuse_a_cascade(call: Callable[..., Any], cascade: Bundle) -> None:
    pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]'")
    benches = [("bench", part, cascade.path) for part in ("calls", "samplers", "serve")]
    for words in (("serve", cascade.path, "--port", 0), *benches):
        assert f"{cascade.path}: is of a cascade, and " in call(cfgdiff, *words, code=1)[1], words
    line = call(run, "--model", cascade.path / "stage-1", "--class", "a", code=2)[1]
    assert line.startswith("Error: low: cascade-1 enlarges smaller pictures")


def test_the_benchmark_of_a_cascade(
    call: Callable[..., Any], cascade: Bundle, packaged: Bundle, set_openers: Callable[[dict[str, Any]], None]
) -> None:
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    bench, set_up = ("bench", "cascade"), ("--quick", "--batches", 1, "--rounds", 1, "--threads", 1)
    set_openers({"cpu": ENGINES["cpu"].open})
    out, err = call(cfgdiff, *bench, cascade.path, "--size", 16, *set_up, "--steps", 5)
    assert out.startswith("cascade, 16x16; ") and ", 1 threads; medians of 1 rounds" in out
    loops = re.findall(r"^\| 1 +\| ([^|]+?) +\| ([\d.]+) +\|", out, re.MULTILINE)
    names = [loop.split(":")[0] for loop, _ in loops]  # between them what a user gets, if that is a mixture
    assert names[:2] == ["cfgdiff, cpu float32", "cfgdiff, cpu int8"] and names[-1] == "diffusers, direct"
    gmac = [float(each) for _, each in loops]
    assert gmac[0] == gmac[1] == pytest.approx(gmac[-1], rel=0.11) and "diffusers' fastest forms ..." in err
    at_any = "is of a cascade, and loops are compared at any; see cfgdiff bench cascade --help"
    for words, code, message in (
        ((packaged.path,), 1, f"{packaged.path}: expected a cascade, found one network; see cfgdiff bench --help"),
        ((cascade.path, "--size", 9), 2, "--size: cascade draws pictures of 8, 16, 32, found 9; take one of these"),
        ((cascade.path, "--checkpoint", "a"), 2, "--checkpoint: expected 3, the base first, found 1; repeat it"),
    ):
        assert f"Error: {message}\n" in call(cfgdiff, *bench, *words, code=code)[1]
    assert call(cfgdiff, "bench", cascade.path, code=1)[1] == f"Error: {cascade.path}: {at_any}\n"


def test_info_verify_and_fitted_steps_know_the_stages(
    call: Callable[..., Any], cascade: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(cascade.path, tmp_path / "copy"))
    card = call(cfgdiff, "info", copy)[0]
    assert "stage-1: enlarges them to 16x16" in card and "stage-2: enlarges them to 32x32; defaults: ddim, 2" in card
    assert "condition_noise: s of each row" in call(cfgdiff, "info", copy / "stage-2")[0]
    tree = json.loads((copy / "stage-2" / "bundle.json").read_text())
    tree["variants"]["float32"]["certificate"] = None
    (copy / "stage-2" / "bundle.json").write_text(json.dumps(tree))
    lines = call(cfgdiff, "verify", copy, "--engine", "cpu", "--n", 8)[1]
    assert "stage-2, cpu float32: passed" in lines and "\ncpu int8: passed" in lines
    assert all(v.certificate for model in load_bundle(copy).models for v in model.variants.values())
    call(cfgdiff, "fit-steps", copy / "stage-1", "--steps", 2, "--teacher-steps", 6, "--n", 8)
    stage = load_bundle(copy).stages[0]
    assert list(stage.fitted) == [2] and not load_bundle(copy).fitted and stage.fitted[2].guidance == 1.5
    report = call(run, "--model", copy, "--class", "a", "--n", 1, "--stage-steps", 2, "--out", "x.png", "--json")[0]
    assert [entry["sampler"] for entry in json.loads(report)["stages"]] == ["ddim", "fitted", "ddim"]


def test_a_cascade_is_exported_anew(call: Callable[..., Any], cascade: Bundle, tmp_path: Path) -> None:
    words = ("export", "--from-bundle", cascade.path, "--no-tensorrt", "--out")
    call(cfgdiff, *words, "anew", "--steps", 6, "--stage-steps", 5, "--stage-noise", "50,0")
    anew = load_bundle(tmp_path / "anew")
    assert [model.defaults.steps for model in anew.models] == [6, 5, 5]
    assert [stage.condition.noise for stage in anew.stages] == [50.0, 0.0]
    assert [model.gmac for model in anew.models] == [model.gmac for model in cascade.models]
    assert "already there" in call(cfgdiff, *words, "anew", code=1)[1]
    call(cfgdiff, *words, "anew", "--force")
    with Image.open(tmp_path / "anew" / "samples.png") as sheet:
        assert sheet.size[0] > 3 * 32  # pictures of the last stage
    (tmp_path / "anew" / "stage-2" / "mine.txt").touch()
    assert "`force` would delete what is not the bundle's (stage-2/mine.txt)" in (
        call(cfgdiff, *words, "anew", "--force", code=1)[1].replace("--force", "`force`")
    )
    error = call(cfgdiff, *words, "more", "--stage-noise", 700, code=2)[1]
    assert "--stage-noise: more-stage-1 was trained for 0 .. 500, found 700" in error
    assert not (tmp_path / "more").exists() and not list(tmp_path.glob(".*"))


def test_the_sheet_of_a_cascade_is_drawn_by_all_of_it(cascade: Bundle) -> None:
    with open_engine(cascade, "cpu", "float32") as engine:
        pictures = draw(cascade, ["a", "b", "c"] * 8, engine)
    with Image.open(cascade.path / "samples.png") as sheet:
        assert np.abs(np.asarray(sheet).astype(int) - grid(pictures, columns=3)).max() <= 2


def _checkpoint(folder: Path, preset: str, *changes: str, classes: str = "ab") -> Path:
    """An untrained run of a preset on drawn pictures, with its first checkpoint."""
    from cfgdiff.trainer.build import new_run
    from cfgdiff.trainer.config import load_preset, make_config
    from cfgdiff.trainer.data import PictureSet

    config = make_config(load_preset(preset), changes)
    size = config.train.image_size
    pictures, labels = np.zeros((4, 3, size, size), np.uint8), np.arange(4) % 2
    run = new_run(config, PictureSet("drawn", list(classes), pictures, labels, pictures, labels), folder, "train")
    run.save()
    return folder


def test_runs_that_are_no_cascade_are_refused_before_any_work(call: Callable[..., Any], tmp_path: Path) -> None:
    base, stage = _checkpoint(tmp_path / "base", "smoke"), _checkpoint(tmp_path / "stage", "smoke-sr")
    other = _checkpoint(tmp_path / "other", "smoke-sr", "train.image_size=64", classes="xy")
    for runs, message in (
        (
            (stage,),
            f"{stage}: is a super-resolution stage, which enlarges pictures; give the run that draws the smaller",
        ),
        ((base, base), f"{base}: draws from noise alone; expected a super-resolution stage"),
        ((base, stage), f"{stage}: enlarges pictures of 16x16, found 32x32 below it; order the runs by size"),
        ((base, other), f"{other}: has the classes x, y; the base has a, b; train it on the same data"),
    ):
        line = call(cfgdiff, "export", *runs, "--out", "made", "--no-tensorrt", code=1)[1]
        assert line.startswith(f"Error: {message}") and line.count("\n") == 1, line
    assert not (tmp_path / "made").exists()
    line = call(cfgdiff, "export", base, "--stage-steps", 3, "--out", "made", "--no-tensorrt", code=2)[1]
    assert "--stage-steps: is for the stages of a cascade, found none" in line
    line = call(cfgdiff, "bench", "training", "--preset", "sr-16-32", "--data", tmp_path, code=2)[1]
    assert "--preset: the other loop trains no super-resolution stage, found sr-16-32; take another" in line


def test_triton_refuses_a_cascade(call: Callable[..., Any], cascade: Bundle, tmp_path: Path) -> None:
    triton = call(cfgdiff, "export", "--from-bundle", cascade.path, "--triton", "models", code=1)[1]
    refused = "is of a cascade, and Triton's loop steps one network; take a model of one network, as cifar10-small"
    assert triton == f"Error: {cascade.path}: {refused}\n" and list(tmp_path.iterdir()) == []


def test_shards_of_a_cascade_are_its_pictures(drawn: Callable[..., Any], call: Callable[..., Any], cascade: Bundle,
                                              tmp_path: Path) -> None:  # fmt: skip
    words = ("--n", 7, "--batch", 2, "--seed", 3, "--guidance", "1,2", "--stage-steps", "2,1", "--stage-noise", "50,90")
    shards = (*words, "--shard-size", 4, "--out")
    drawn(*words, "--out", "all.npz")
    report = json.loads(drawn(*shards, "one", "--json")[0])
    assert report["pictures"] == 7 and [each["steps"] for each in report["stages"]] == [2, 1]
    place = open_place("one")
    first, last = read_manifests(place)
    with np.load("all.npz") as arrays:
        for manifest in (first, last):
            pictures, labels = read_shard(place, manifest)
            these = slice(manifest.first, manifest.first + manifest.count)
            assert np.array_equal(pictures, arrays["pictures"][these]) and np.array_equal(
                labels, arrays["labels"][these]
            )
    digests = [model_digest(model, "float32") for model in cascade.models]
    assert [first.model_sha256, *(each["model_sha256"] for each in first.stage_models)] == digests
    assert first.shape == (32, 32, 3) and first.made_by == [("cpu", "float32")] * 3
    for share in ("1/2", "0/2"):
        drawn(*shards, "many", "--shard-of", share)
    files = {name: sha256_of(Path("many", name)) for name in sorted(os.listdir("one"))}
    assert files == {name: sha256_of(Path("one", name)) for name in files} and len(files) == 4
    Path("one/shard-000000.tar").unlink()
    assert "is missing; it will be made anew" in drawn(*shards, "one")[1]
    assert sha256_of(Path("one/shard-000000.tar")) == first.sha256
    shutil.unpack_archive("one/shard-000001.tar", "unpacked")
    again = call(run, "--model", cascade.path, "--remake", "unpacked/000000005.png", "--out", "again.png")[1]
    assert "again.png: the same pixels (cpu, float32" in again


def test_another_cascade_in_the_place_of_a_set_is_refused(drawn: Callable[..., Any], cascade: Bundle) -> None:
    words = ("--n", 4, "--shard-size", 2, "--out", "set", "--size", 16)
    drawn(*words, "--shards", 1)
    (manifest,) = read_manifests(open_place("set"))
    assert manifest.shape == (16, 16, 3) and len(manifest.stage_models) == 1
    for changed, differs in (
        (("--stage-noise", 20), "stage 1 noise 100.0 (now 20.0)"),
        (("--size", 8), "shape 16,16,3 (now 8,8,3), stage 1 model_sha256 "),
        (("--precision", "int8"), "stage 1 precision float32 (now int8)"),
    ):
        assert differs in drawn(*words, *changed, code=2)[1], changed
    line = drawn(*words, "--size", 64, code=2)[1]
    assert line.endswith("--size: cascade draws pictures of 8, 16, 32, found 64; take one of these\n")
    text = Path("set/shard-000001.json").read_text()
    Path("set/shard-000001.json").write_text(text.replace('"precision"', '"precise"'))
    with pytest.raises(Failure, match=r"shard-000001\.json: is damaged"):
        read_manifests(open_place("set"))
    assert "is damaged (its entry 'precision'); it will be made anew" in drawn(*words)[1]
