"""`cfgdiff eval` from end to end on small models: the page holds everything and asks for nothing; mistakes are one
line."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch_fidelity", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import features
from cfgdiff.cli.evaluate import evaluate
from cfgdiff.cli.main import main
from cfgdiff.runtime import Bundle, load_bundle, open_engine
from cfgdiff.runtime.errors import Failure

FAST = ["--steps", "2", "--guidance", "1", "--sampler", "ddim", "--threads", "1", "--engine", "cpu"]


def call(*args: object) -> "subprocess.CompletedProcess[str]":
    code = """import torch_fidelity.feature_extractor_inceptionv3 as inception
def offline(url, progress):
    raise OSError("no network")
inception.load_state_dict_from_url = offline
from cfgdiff.cli.main import main
main()"""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, "eval", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env)


class Page(HTMLParser):
    """What a page refers to, and the tags it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.links, self.tags = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "data", "poster"):
                self.sources.append(value or "")
            elif name in ("href", "xlink:href"):
                self.links.append(value or "")


def write_data(path: Path, size: int, classes: list[str], n: int = 120) -> Path:
    """An .npz of coarse random pictures."""
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (n, size // 4, size // 4, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    np.savez(path, pictures=pictures, labels=np.arange(n) % len(classes), class_names=np.array(classes))
    return path


def check_page(file: Path) -> Page:
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") for link in page.links) and not {"script", "link", "iframe", "object"} & set(
        page.tags
    )
    assert "url(http" not in text and "@import" not in text and "<!DOCTYPE svg" not in text
    return page


def test_a_whole_report_of_the_packaged_model(packaged: Bundle, drawn_weights: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", 32, packaged.class_names)
    out = tmp_path / "out"
    args = [
        "--data",
        data,
        "--n",
        "64",
        "--alexnet",
        drawn_weights,
        "--out",
        out,
        "--no-sweep",
        "--repeats",
        "2",
        "--cas",
        *FAST,
    ]
    made = call(*args)
    assert made.returncode == 0, made.stderr
    accuracies = r"classification accuracy score \d+\.\d%, class accuracy \d+\.\d%"
    expected = rf"report\.html: Fréchet distance \d+\.\d+, {accuracies}, \d+ copies in 100$"
    assert re.search(expected, made.stdout.strip())
    page = check_page(tmp_path / "out" / "report.html")
    assert page.tags.count("svg") == 1
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        "In place of Inception: AlexNet" in text and "<td>FID</td>" not in text and "<td>Fréchet distance</td>" in text
    )
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert tree["n"] == 64 and tree["quality"]["frechet"]["of"] == 2 and tree["quality"]["frechet"]["deviation"] > 0
    assert (
        tree["nearest"]["samples"]["n"] == 100
        and tree["held-out pictures"]["frechet"] < tree["quality"]["frechet"]["mean"]
    )
    assert np.array(tree["confusion"]).sum() == 128
    assert {"cas", "cas_both"} <= set(tree["quality"]) and "<td>classification accuracy score, N = 64</td>" in text
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "samples").rglob("block-*.npz")}
    assert len(blocks) == 1
    again = call(*args)
    assert again.returncode == 0 and again.stdout == made.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "samples").rglob("block-*.npz")} == blocks


def test_a_model_without_a_classifier_swept_and_stored(
    small_bundle: Bundle, drawn_weights: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))
    data = write_data(tmp_path / "data.npz", 16, small_bundle.class_names)
    code = """import cfgdiff.benchmarks.evaluate as e, cfgdiff.cli.evaluate as c
e.GUIDANCES, e.INTERVALS, e.INSIDE, e.STEPS, c.SWEEP = (1.0, 3.0), ((0.3, 10.0),), (3.0,), (1, 2), 64
import torch_fidelity.feature_extractor_inceptionv3 as inception
def offline(url, progress):
    raise OSError("no network")
inception.load_state_dict_from_url = offline
from cfgdiff.cli.main import main
main()"""
    args = [
        "eval",
        bundle,
        "--data",
        data,
        "--n",
        "64",
        "--alexnet",
        drawn_weights,
        "--out",
        tmp_path / "out",
        "--store",
    ]
    args += ["--threads", "1", "--engine", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=env,
    )
    assert made.returncode == 0, made.stderr
    assert "No class accuracy: no classifier of these classes" in made.stderr
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(row["guidance"], row["evaluations"]) for row in tree["sweep"]] == [
        (1, 10),
        (3, 10),
        (3, 10),
        (2, 1),
        (2, 2),
    ]
    assert any("No nearest neighbours. LPIPS" in note for note in tree["notes"]) and "class accuracy" not in tree
    assert check_page(tmp_path / "out" / "report.html").tags.count("svg") == 2
    stored = load_bundle(bundle)
    assert stored.defaults.guidance == tree["chosen"]["guidance"] and stored.defaults.steps == tree["chosen"]["steps"]
    assert stored.evaluation["quality"] == tree["quality"]
    from cfgdiff.export.card import card

    assert f"- Fréchet distance: {tree['quality']['frechet']['mean']:.4g} (real pictures: " in card(stored)


def test_shards_then_the_whole(small_bundle: Bundle, tmp_path: Path) -> None:
    interval = ["--guidance", "2", "--guidance-interval", "0.3,5"]
    args = [
        small_bundle.path,
        "--n",
        "600",
        "--out",
        tmp_path / "out",
        *FAST,
        *interval,
        "--features",
        "classifier",
        "--classifier",
    ]
    failed = call(*args, tmp_path / "absent.onnx")
    assert failed.returncode == 1 and "not readable as a classifier" in failed.stderr
    classifier = write_classifier(tmp_path / "c.onnx", small_bundle)
    made = [call(*args, classifier, "--shard", shard) for shard in ("2/2", "1/2")]
    assert [one.returncode for one in made] == [0, 0], made[0].stderr
    assert made[0].stdout.strip().endswith("2 blocks are not yet there") and made[1].stdout.strip().endswith(
        "all blocks are there"
    )
    whole = call(*args, classifier)
    assert (
        whole.returncode == 0
        and "class accuracy" in whole.stdout
        and "No --data" in (tmp_path / "out" / "report.html").read_text()
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text())["protocol"]["interval"] == [0.3, 5]


@pytest.mark.parametrize("with_data", [True, False])
def test_without_any_features_there_are_samples_interpolations_and_class_accuracy(
    with_data: bool, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Of a model of other classes than CIFAR-10's, without a network and without --alexnet."""
    monkeypatch.delenv("CFGDIFF_ALEXNET", raising=False)

    def unavailable(*_: object) -> None:
        raise Failure("weights cannot be fetched (no network)")

    monkeypatch.setattr(features, "inception_features", unavailable)
    monkeypatch.setattr(features, "find_weights", unavailable)
    monkeypatch.setattr("cfgdiff.benchmarks.blocks.BLOCK", 32)
    monkeypatch.setattr(
        "cfgdiff.runtime.open_engine", partial(open_engine, precision="float32")
    )  # without measuring what is fastest
    bundle = Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))
    data = write_data(tmp_path / "data.npz", 16, small_bundle.class_names)
    given = ["--data", str(data)] if with_data else []
    args = [str(bundle), *given, "--n", "32", "--out", str(tmp_path / "out"), *FAST, "--store"]
    made = CliRunner().invoke(evaluate, args)
    assert made.exit_code == 0, made.exception
    assert "No distances and no sweep. --features: none available" in made.output and made.stdout.strip().endswith(
        "32 samples"
    )
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        "quality" not in tree
        and tree["sweep"] == []
        and "class accuracy" not in tree
        and tree["protocol"]["features"] == "none"
    )
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        check_page(tmp_path / "out" / "report.html").sources
        and 'alt="interpolations"' in text
        and text.count('alt="samples: ') == 3
    )
    assert load_bundle(bundle).evaluation["n"] == 32
    if not with_data:  # no features of its own, but a classifier that the features of "auto" are not taken from
        return
    classifier = write_classifier(tmp_path / "c.onnx", small_bundle)
    monkeypatch.setattr(features, "choose_features", unavailable)
    again = CliRunner().invoke(evaluate, [*args, "--classifier", str(classifier)])
    assert again.exit_code == 0 and "class accuracy" in again.stdout, again.exception


def test_a_cascade_is_measured_in_its_largest_pictures(
    cascade: Bundle, drawn_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfgdiff.benchmarks.blocks.BLOCK", 32)
    monkeypatch.setattr("cfgdiff.benchmarks.evaluate.STEPS", (1, 2))
    monkeypatch.setattr("cfgdiff.benchmarks.evaluate.GUIDANCES", (1.0,))
    monkeypatch.setattr("cfgdiff.benchmarks.evaluate.INTERVALS", ())
    monkeypatch.setattr("cfgdiff.cli.evaluate.QUICK_SWEEP", 32)
    monkeypatch.setattr("cfgdiff.runtime.open_engine", partial(open_engine, precision="float32"))
    bundle, out = Path(shutil.copytree(cascade.path, tmp_path / "bundle")), tmp_path / "out"
    data = write_data(tmp_path / "data.npz", 32, cascade.class_names)
    given = ["--data", str(data), "--classifier", str(write_classifier(tmp_path / "c.onnx", cascade))]
    given += ["--alexnet", str(drawn_weights), "--features", "classifier", "--quick", "--n", "32", "--store"]
    settings = ["--steps", "4", "--stage-steps", "3,2", "--stage-guidance", "2,1", "--engine", "cpu", "--threads", "1"]
    made = CliRunner().invoke(evaluate, [str(bundle), *given, *settings, "--out", str(out)])
    assert made.exit_code == 0, made.exception
    assert re.search(r"Fréchet distance \d.*, class accuracy \d+\.\d%, \d+ copies in 32", made.stdout)
    tree = json.loads((out / "report.json").read_text())
    rows = [2 * 4 - 1, 2 * 3, 2]  # guided, but for the base's first evaluation, which is beyond its interval
    gmac = sum(n * (model.gmac or 0) for n, model in zip(rows, cascade.models, strict=True))
    assert tree["cost"] == {"rows": rows, "gmac": pytest.approx(gmac)}
    stages = tree["protocol"]["stages"]
    assert [(each["evaluations"], each["guidance"], each["engine"]) for each in stages] == [
        (3, 2, "cpu"),
        (2, 1, "cpu"),
    ]
    assert len(tree["sweep"]) == 3 and np.array(tree["confusion"]).sum() == 32
    check_page(out / "report.html")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert f"A picture takes 7 + 6 + 2 rows of the networks, the base's first: {gmac:.3g} billion multiply-adds" in text
    with np.load(next((out / "samples").rglob("block-*.npz"))) as block:
        assert block["pictures"].shape == (32, 32, 32, 3)
    stored = load_bundle(bundle)
    assert stored.evaluation["cost"] == tree["cost"] and len(stored.stages) == 2
    low = write_classifier(tmp_path / "low.onnx", cascade.models[0])
    wrong = CliRunner().invoke(evaluate, [str(bundle), *given[:3], str(low), *settings, "--out", str(out)])
    assert f"{low}: is of (3, 8, 8) pictures of a, b, c; expected (3, 32, 32) of a, b, c" in str(wrong.exception)


@pytest.mark.parametrize("name", ["jinja2", "matplotlib", "torch_fidelity", "torch"])
def test_a_missing_package_is_told_before_the_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(evaluate, ["--data", "absent", "--cas"])
    assert isinstance(made.exception, ModuleNotFoundError) and name in str(
        made.exception
    )  # run_command makes it a line
    assert not list(tmp_path.iterdir())


def write_classifier(path: Path, bundle: Bundle) -> Path:
    import torch

    from cfgdiff.benchmarks.classifier import Classifier, build

    torch.manual_seed(0)
    (channels, size, _), known = bundle.picture_shape, {"class_names": bundle.class_names, "accuracy": None}
    network = Classifier(channels, len(bundle.class_names), widths=(8, 8)).eval()
    path.write_bytes(build(network, size, known).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--shard", "5/4"], 2, "--shard: expected K/M with 1 <= K <= M"),
        (["--n", "3"], 2, "--n"),
        (["--features", "fid"], 2, "--features"),
        (["absent"], 1, "no bundle there"),
        (["--data", "absent"], 1, "absent: no such file or folder"),
        (["--alexnet", "absent"], 1, "--alexnet: absent: not readable as safetensors"),
        (["--classifier", "absent"], 1, "--classifier: absent: not readable as a classifier"),
        (["--features", "inception"], 1, "--features inception: its weights cannot be fetched (no network)"),
        (["--sampler", "dimm"], 2, "sampler: no sampler 'dimm'"),
        (["--cas"], 2, "--cas: tests a classifier on real pictures, found no --data"),
    ],
)
def test_mistakes_are_said_before_the_work(
    args: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise Failure("--features inception: its weights cannot be fetched (no network); connect once")

    monkeypatch.setattr(features, "inception_features", fail)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(evaluate, args)
    found = made.exception if isinstance(made.exception, Failure) else None
    assert (found.exit_code if found else made.exit_code) == code
    assert message in (said := str(found) if found else made.output) and (not found or "\n" not in said), said
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_classes_is_refused(
    small_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(small_bundle.path), "--n", "32", "--teacher", "cifar10-small", *FAST])
    assert stopped.value.code == 1
    expected = "Error: --teacher: cifar10-small draws other classes or sizes than "
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected) and list(tmp_path.iterdir()) == []
