"""The GPU check on a machine without a GPU: real engines are built, and a stand-in answers for them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import gpu_check
from cfgdiff.cli.bench import bench
from cfgdiff.export import tensorrt
from cfgdiff.runtime import Bundle, load_bundle, open_engine
from cfgdiff.runtime.engines import ENGINES
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import BuiltEngine, check_certificate, engines_beside


class StandIn:
    """A "TensorRT engine" that answers as float32 on the CPU does, times `loud`."""

    name, max_batch, loud = "tensorrt", 64, 1.0

    def __init__(self, bundle: Bundle, precision: str, threads: int | None = None, uncertified: bool = False,
                 built: BuiltEngine | None = None) -> None:  # fmt: skip
        self.precision, self._inside = precision, open_engine(bundle, "cpu", "float32")
        if not uncertified:
            check_certificate(next(e for e in engines_beside(bundle.path) if e.key.precision == precision))

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        return self._inside.predict(sample, timestep, class_label, guidance) * np.float32(self.loud)

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    for module in (gpu_check, tensorrt):
        monkeypatch.setattr(module, "gpu_here", lambda: ("8.9", "570.1"))

    def open_built(bundle: Bundle, built: BuiltEngine, uncertified: bool) -> StandIn:
        return StandIn(bundle, built.key.precision, None, uncertified)

    entry = replace(ENGINES["tensorrt"], open=lambda *args: StandIn(*args), open_built=open_built)  # type: ignore[arg-type]
    monkeypatch.setitem(ENGINES, "tensorrt", entry)
    monkeypatch.setattr(gpu_check, "version", lambda name: "1.0")


def check(out: Path, bundle: Bundle) -> Any:
    flags = ["--batch", "1,8,64", "--n", "8", "--rounds", "1"]
    return CliRunner().invoke(bench, ["gpu", "--bundle", str(bundle.path), "--out", str(out), *flags])


def test_it_builds_certifies_times_and_reports(with_gpu: None, small_bundle: Bundle, tmp_path: Path) -> None:
    result = check(tmp_path / "good", small_bundle)
    assert result.exit_code == 0, result.output
    report, built = (
        " ".join((tmp_path / "good" / "report.md").read_text().split()),
        engines_beside(tmp_path / "good" / "bundle"),
    )
    assert {e.key.precision for e in built} == {"float32", "float16"} and {e.key.sm for e in built} == {("8.9",)}
    for engine in built:
        check_certificate(engine)
        assert f"| 64 | 64 | {engine.path.name} |" in report
    assert "All engines passed." in report and "| tensorrt float16 | 0." in report and "SM 8.9, driver 570.1" in report
    assert load_bundle(tmp_path / "good" / "bundle").variants["float16"].certificate


def test_an_engine_that_fails_is_told_and_not_used(
    with_gpu: None, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "loud", 1.5)
    result = check(tmp_path / "bad", small_bundle)
    report = (tmp_path / "bad" / "report.md").read_text()
    assert result.exit_code == 1 and report.count("- FAILED: float") > 10
    assert "| tensorrt float16 | " in report and "failed its verification" in report


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "gpu_here", lambda: None)
    monkeypatch.setattr(gpu_check, "find_module", lambda: None)
    result = CliRunner().invoke(bench, ["gpu", "--out", str(tmp_path / "x")])
    assert (
        isinstance(result.exception, Failure)
        and "no GPU found" in str(result.exception)
        and list(tmp_path.iterdir()) == []
    )


def test_the_module_is_the_command_without_pytorch(tmp_path: Path) -> None:
    code = """import runpy, sys
sys.modules["torch"] = None
sys.argv = ["gpu_check", "--out", sys.argv[1], "--n", "7"]
runpy.run_module("cfgdiff.benchmarks.gpu_check", run_name="__main__")"""
    made = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert made.returncode == 2 and "'--n': 7 is not in the range x>=8" in made.stderr
