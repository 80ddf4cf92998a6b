"""A bundle is written whole or not at all."""

from pathlib import Path

import pytest

from cfgdiff.export import write
from cfgdiff.export.write import write_bundle
from cfgdiff.runtime import generate, load_bundle, open_engine
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.checkpoint import LoadedModel

DEFAULTS = Defaults("ddim", 2, 1.5, (0.1, 5.0))
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's exporter


def test_the_bundle_runs_and_carries_its_settings(model: LoadedModel, tmp_path: Path) -> None:
    report = write_bundle(model, tmp_path / "deep" / "b", "b", DEFAULTS)
    bundle = load_bundle(tmp_path / "deep" / "b")
    assert (bundle.defaults, bundle.class_names, bundle.schedule) == (DEFAULTS, ["a", "b", "c"], model.schedule)
    assert 0 < report.graph_error < 1e-4 and 0 < report.rounding_error < 1e-2 and report.picture_psnr > 35
    assert bundle.provenance["errors"]["picture_psnr_db"] == round(report.picture_psnr, 1)
    ((_, pictures),) = generate(open_engine(bundle), bundle, ["a", "c"])
    assert pictures.shape == (2, 16, 16, 3)


def test_a_float16_variant_stands_beside_with_what_was_measured(model: LoadedModel, tmp_path: Path) -> None:
    report = write_bundle(model, tmp_path / "b", "b", DEFAULTS, fp16=True)
    bundle = load_bundle(tmp_path / "b")
    assert list(bundle.variants) == ["float32", "float16"] and bundle.variants["float32"].measured == {}
    measured = bundle.variants["float16"].measured
    assert measured == report.variants["float16"] and measured["picture_psnr_db"] > 30
    assert len(measured["relative_error"]) == 11 and 0 < max(measured["relative_error"].values()) < 0.01
    assert open_engine(bundle).precision == "float32" and open_engine(bundle, precision="float16").precision == "float16"


def test_a_target_is_never_lost(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(model, tmp_path / "b", "b", DEFAULTS)
    before = (tmp_path / "b" / "bundle.json").read_bytes()
    with pytest.raises(Failure, match="already there; --force"):
        write_bundle(model, tmp_path / "b", "b", DEFAULTS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_graph", full)
    with pytest.raises(Failure, match="No space left"):
        write_bundle(model, tmp_path / "b", "b", DEFAULTS, force=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "save_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(model, tmp_path / "c", "c", DEFAULTS)
    assert (tmp_path / "b" / "bundle.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "other").mkdir()
    with pytest.raises(Failure, match="is no bundle"):
        write_bundle(model, tmp_path / "other", "b", DEFAULTS, force=True)
