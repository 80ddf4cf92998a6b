"""The table of engines: what there is to choose from on a CPU, and what a new entry brings."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cfgdiff.cli.engines import engines as engines_command
from cfgdiff.runtime import Bundle, engines, load_bundle, open_engine
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.engine_ort import OrtEngine
from cfgdiff.runtime.engines import (
    ENGINES,
    REFERENCE,
    EngineEntry,
    computed_variant,
    open_at,
    package,
    precisions,
    targets,
    ways_on_cpu,
)
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.sidecar import graph_digest
from cfgdiff.runtime.survey import survey


def test_float16_is_for_gpus_and_the_reference_comes_first(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: name))
    on_openvino = [("openvino", precision) for precision in ("float32", "int8", "bfloat16")]
    assert ways_on_cpu(small_bundle) == [REFERENCE, ("cpu", "int8"), *on_openvino]
    assert precisions("cpu", small_bundle) == ["float32", "float16", "int8"]  # by name they are all accepted


def test_what_is_not_installed_is_no_way(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    assert ways_on_cpu(small_bundle) == [("cpu", "float32"), ("cpu", "int8")]


def test_an_engine_is_opened_at_the_precision_that_was_asked_for(small_bundle: Bundle) -> None:
    opened = open_at("cpu", small_bundle, "int8", threads=1)
    assert (opened.name, opened.precision) == ("cpu", "int8")
    with pytest.raises(BadInput, match="no 'bfloat16' variant; choose from float32, float16, int8"):
        open_at("cpu", load_bundle(small_bundle.path), "bfloat16")


def test_packages_have_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package("cpu").startswith("onnxruntime")
    monkeypatch.setitem(ENGINES, "cuda", replace(ENGINES["cuda"], packages=("no-such-package-at-all",)))
    assert package("cuda") == ""


def test_the_variant_of_an_own_precision_is_named_once(small_bundle: Bundle) -> None:
    assert computed_variant(small_bundle, "bfloat16") == computed_variant(small_bundle, "float32")
    assert computed_variant(small_bundle, "int8") == small_bundle.variants["int8"]
    with pytest.raises(BadInput, match="no 'int4' variant"):
        computed_variant(small_bundle, "int4")


class Toy(WrappedEngine):
    """ONNX Runtime under another name, at a precision of its own."""

    def __init__(self, bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> None:
        super().__init__(OrtEngine(bundle, "float32", threads))
        self.name, self.precision = "toy", precision


@pytest.fixture
def toy(set_openers: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more entry in the table."""
    set_openers({"cpu": ENGINES["cpu"].open})
    entry = EngineEntry(Toy, "Toy", ("numpy",), on_cpu=True, own_precisions={"bfloat16": "float32"})
    monkeypatch.setitem(ENGINES, "toy", entry)


def test_one_entry_adds_an_engine(toy: None, small_bundle: Bundle, tmp_path: Any) -> None:
    assert open_engine(small_bundle, "toy").name == "toy"
    assert open_engine(small_bundle, precision="bfloat16").name == "toy"
    seen = survey(small_bundle, threads=1)
    row = seen.rows[-1]
    assert row.engine == "toy" and row.package.startswith("numpy ") and not row.remarks
    assert row.precisions == ("float32", "float16", "int8", "bfloat16")
    assert ("toy", "bfloat16") in {s.way for s in seen.speeds if s.certified}
    (own,) = [target for target in targets("toy", small_bundle) if not target.own]
    assert (own.name, own.sha256) == ("toy bfloat16", graph_digest(small_bundle.variants["float32"]))
    shown = CliRunner().invoke(engines_command, [str(small_bundle.path), "--threads", "1"])
    assert shown.exit_code == 0 and "toy       numpy" in shown.output


def test_verify_takes_an_added_engine(toy: None, small_bundle: Bundle) -> None:
    pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")
    from cfgdiff.cli.verify import verify

    made = CliRunner().invoke(verify, [str(small_bundle.path), "--engine", "toy", "--n", "8", "--no-store"])
    lines = [line for line in made.output.splitlines() if line.startswith("toy ")]
    assert [line.split(":")[0] for line in lines] == [f"toy {p}" for p in ("float32", "float16", "int8", "bfloat16")]
    assert made.exit_code == 0 and all(": passed;" in line for line in lines), made.output
    unknown = CliRunner().invoke(verify, [str(small_bundle.path), "--engine", "toi", "--n", "8"])
    assert isinstance(unknown.exception, BadInput)
    assert (
        str(unknown.exception).removeprefix("--")
        == "engine: no engine 'toi'; choose from cpu, toy; did you mean 'toy'?"
    )
