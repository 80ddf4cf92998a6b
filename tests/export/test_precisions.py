"""The table of precisions: one entry adds a variant."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cfgdiff.cli.export import export
from cfgdiff.export.precisions import PRECISIONS, Limits, Precision
from cfgdiff.export.source import from_bundle
from cfgdiff.export.write import write_bundle
from cfgdiff.runtime import Bundle, open_engine


def test_one_entry_adds_a_precision(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def same(graph, calls):  # type: ignore[no-untyped-def]
        asked.append(len(calls()))
        return graph

    loose = Limits(rows=0.1, prediction=None, x0=0.1, psnr_db=20, features=0.5)
    monkeypatch.setitem(PRECISIONS, "twin", Precision(loose, same))
    report = write_bundle(from_bundle(small_bundle.path, "b", {}), tmp_path / "b", ("twin",))
    variant = report.bundle.variant("twin")
    assert variant.graph == "model-twin.onnx" and asked == [small_bundle.defaults.steps]
    assert variant.certificate is not None and variant.certificate.passed
    assert variant.certificate.limits["psnr_db"] == 20
    assert open_engine(report.bundle, "cpu", "twin").precision == "twin"


def test_every_derived_precision_has_its_flag() -> None:
    text = CliRunner().invoke(export, ["--help"]).output
    derived = [precision for precision in PRECISIONS.values() if precision.derive]
    assert len(derived) == 2 and all(f"  {precision.flag} " in text for precision in derived)
