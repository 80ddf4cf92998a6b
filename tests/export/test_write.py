"""A bundle is written whole or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from cfgdiff.export import write
from cfgdiff.export.source import Source, from_bundle
from cfgdiff.export.tensorrt import build_engines
from cfgdiff.export.write import check_target, write_bundle
from cfgdiff.runtime import Bundle, generate, load_bundle, open_engine
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import engines_beside, graph_digest
from cfgdiff.trainer.weights import LoadedModel


@pytest.fixture
def source(small_source: Source) -> Source:
    """The small network's graph and description."""
    return small_source


def test_the_bundle_runs_and_carries_its_settings(source: Source, model: LoadedModel, tmp_path: Path) -> None:
    report = write_bundle(source, tmp_path / "deep" / "b")
    bundle = load_bundle(tmp_path / "deep" / "b")
    assert report.bundle == bundle and report.build_error is None
    assert (bundle.defaults, bundle.class_names, bundle.schedule) == (
        Defaults("ddim", 3, 2.0, (0.1, 50.0)),
        ["a", "b", "c"],
        model.schedule,
    )
    errors = bundle.provenance["errors"]
    assert errors == report.errors and errors["picture_psnr_db"] > 35
    assert 0 < float(errors["graph"]) < 1e-4 and 0 < float(errors["float16_weights"]) < 1e-2
    ((_, pictures),) = generate(open_engine(bundle, "cpu"), bundle, ["a", "c"])
    assert pictures.shape == (2, 16, 16, 3)


def test_every_variant_has_a_certificate(small_bundle: Bundle) -> None:
    assert list(small_bundle.variants) == ["float32", "float16", "int8"]
    sizes = [(small_bundle.path / v.graph).stat().st_size for v in small_bundle.variants.values()]
    assert sizes[2] < sizes[0]
    for precision, variant in small_bundle.variants.items():
        assert variant.certificate is not None and variant.certificate.passed, (precision, variant.certificate)
        assert variant.certificate.pictures == 16 and variant.certificate.sha256 == graph_digest(variant)
    worst = {p: max(v.certificate.prediction.values()) for p, v in small_bundle.variants.items() if v.certificate}
    assert worst["float32"] == 0 < worst["float16"] < worst["int8"] and worst["float16"] < 0.01
    for precision in ("float32", "int8"):
        assert open_engine(small_bundle, "cpu", precision).precision == precision


def test_the_graphs_say_what_they_are_and_others_can_read_them(small_bundle: Bundle) -> None:
    for precision, variant in small_bundle.variants.items():
        graph = onnx.load(str(small_bundle.path / variant.graph))
        told = {entry.key: entry.value for entry in graph.metadata_props}
        assert (
            told["precision"] == precision
            and json.loads(told["class_names"]) == ["a", "b", "c"]
            and "uncond + w" in told["guidance"]
        )
        assert json.loads(told["schedule"])["prediction"] == small_bundle.schedule.prediction
        assert all(value.doc_string for value in (*graph.graph.input, *graph.graph.output)) and "0 <= G <= B" in str(
            graph.graph.input[3]
        )
        assert told["null_class"] == "3" and "cos((t / T + 0.008) / 1.008 * pi / 2)^2" in told["sampling"]
        onnx.checker.check_model(graph, full_check=True)
        assert {o.domain: o.version for o in graph.opset_import} == {"": 18}


def test_engines_lie_beside_and_are_kept_while_they_fit(small_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    source, phases = from_bundle(small_bundle.path, "b", {}), list[str]()

    def build(bundle: Bundle) -> None:
        for _ in build_engines(bundle, (1, 2, 4), ("8.6",), lambda phase, done, total: phases.append(phase)):
            pass

    report = write_bundle(source, tmp_path / "b", ("float16",), build=build)
    engines = engines_beside(tmp_path / "b")
    assert report.build_error is None and {e.key.precision for e in engines} == {"float32", "float16"}
    assert all(
        e.key.graph == graph_digest(report.bundle.variant(e.key.precision)) and e.key.profile == (1, 2, 4)
        for e in engines
    )
    assert "TensorRT engine" in (tmp_path / "b" / "README.md").read_text() and phases
    phases.clear()
    write_bundle(source, tmp_path / "b", ("float16",), force=True, build=build)
    assert engines_beside(tmp_path / "b") == engines and not phases  # found again, not built again
    write_bundle(from_bundle(small_bundle.path, "renamed", {}), tmp_path / "b", force=True)
    assert engines_beside(tmp_path / "b") == []  # the graph is another one


def test_a_bundle_without_the_engines_that_could_not_be_built(source: Source, tmp_path: Path) -> None:
    def build(bundle: Bundle) -> None:
        raise Failure("TensorRT is not installed")

    report = write_bundle(source, tmp_path / "b", build=build)
    assert str(report.build_error) == "TensorRT is not installed" and load_bundle(tmp_path / "b") == report.bundle


def test_a_target_is_never_lost(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(source, tmp_path / "b")
    before = (tmp_path / "b" / "bundle.json").read_bytes()
    with pytest.raises(Failure, match="already there; `force`"):
        write_bundle(source, tmp_path / "b")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(source, tmp_path / "c", build=interrupted)
    monkeypatch.setattr(write, "save_graph", full)
    with pytest.raises(Failure, match="No space left"):
        write_bundle(source, tmp_path / "b", force=True)
    monkeypatch.setattr(write, "save_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(source, tmp_path / "c")
    assert (tmp_path / "b" / "bundle.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "other").mkdir()
    with pytest.raises(Failure, match="is no bundle"):
        write_bundle(source, tmp_path / "other", force=True)


def test_force_deletes_nothing_that_is_not_the_bundles(source: Source, small_bundle: Bundle, tmp_path: Path) -> None:
    target = Path(shutil.copytree(small_bundle.path, tmp_path / "b"))
    for name in ("x.engine", "x.engine.json", ".bundle.json.partial", ".README.md.abc.partial"):
        (target / name).write_text("{}")
    check_target(target, force=True)
    (target / "notes.txt").write_text("mine")
    (target / "pictures").mkdir()
    with pytest.raises(
        Failure, match=r"`force` would delete what is not the bundle's \(notes.txt, pictures\); move it"
    ):
        check_target(target, force=True)
    assert (target / "notes.txt").read_text() == "mine"
    (target / "notes.txt").unlink()
    (target / "pictures").rmdir()
    (target / "bundle.json").write_text("{damaged")
    check_target(target, force=True)


KILLED = """
import json, shutil, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
from faults import every_kill, outcome
import numpy as np
import onnx
from onnx import TensorProto, helper
from cfgdiff.export import write
from cfgdiff.export.description import store_certificate, store_fitted
from cfgdiff.export.source import Source
from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.fitted import Fitted

root = Path({root!r})
target = root / "b"
values = [helper.make_tensor_value_info(n, k, ["B", *s]) for n, k, s in (
    ("sample", 1, [3, 4, 4]), ("timestep", 1, []), ("class_label", 7, []), ("guidance", 1, []),
    ("prediction", 1, [3, 4, 4]))]
graph = helper.make_graph([helper.make_node("Identity", ["sample"], ["prediction"])], "g", values[:4], values[4:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
description = {{
    "format_version": 1, "class_names": ["a", "b"], "image_shape": [3, 4, 4], "provenance": {{}},
    "schedule": {{"kind": "cosine", "T": 1000, "prediction": "v", "data_std": 1.0}},
    "defaults": {{"sampler": "ddim", "steps": 2, "guidance": 1.0, "interval": None}},
}}
write.open_engine = lambda *_: None  # engines have threads, which do not survive a fork
write.reference = lambda *_: None
write.verify = lambda *_, **__: Certificate(True, prediction={{"+0": 0.0}}, x0={{"+0": 0.0}}, pictures=1)
write.write_card = lambda bundle, engine: (bundle.path / "README.md").write_text("card")

def export(name):
    return lambda: write.write_bundle(Source(model, description | {{"name": name}}), target, force=True)

def whole(names):
    bundle = load_bundle(target)
    assert bundle.name in names and sorted(p.name for p in target.iterdir() if p.suffix != ".partial") == [
        "README.md", "bundle.json", "model.onnx"], list(target.iterdir())
    return bundle

def after():
    whole(["new"])
    assert [p.name for p in root.iterdir()] == ["b"], list(root.iterdir())

def killed(work, check, end):
    return every_kill(export("old"), work, root, lambda k: outcome(lambda: (check(), work(), end())))

kills = [killed(export("new"), lambda: whole(["old", "new"]), after)]
fitted = {{1: Fitted((900.0, 0.0), ((1.0, 0.0, 0.0, 0.0),), 1.0)}}

def fitted_or_not():
    assert whole(["old"]).fitted in ({{}}, fitted)

def stored():
    assert whole(["old"]).fitted == fitted and not list(target.glob(".*"))

kills.append(killed(lambda: store_fitted(load_bundle(target), fitted), fitted_or_not, stored))
print(*kills)
"""


def test_a_kill_before_any_file_operation_loses_no_bundle(tmp_path: Path) -> None:
    """Of export --force, and of what fit-steps stores."""
    script = KILLED.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    export, fit = map(int, done.stdout.split())
    assert export >= 12 and fit >= 2
