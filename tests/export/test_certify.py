"""Certificates are made of everything that works here, and kept where the runtime looks for them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfgdiff.export.certify import candidates, certify, store
from cfgdiff.export.verify import reference
from cfgdiff.runtime import Bundle, Engine, load_bundle, open_engine
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.engines import ENGINES
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import (
    ANY_DRIVER,
    BuiltEngine,
    EngineKey,
    check_certificate,
    engines_beside,
    graph_digest,
    write_sidecar,
)


@pytest.fixture
def bundle(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the small bundle with two engines beside it that nothing here can run."""
    folder = Path(shutil.copytree(small_bundle.path, tmp_path / "b"))
    for precision in ("float32", "float16"):
        key = EngineKey(
            graph_digest(small_bundle.variant(precision)),
            "tensorrt_rtx",
            "1.7",
            ("8.6",),
            ANY_DRIVER,
            precision,
            (1, 2, 4),
        )
        (folder / key.file_name).write_bytes(b"engine")
        write_sidecar(BuiltEngine(folder / key.file_name, key, "0" * 64))
    return load_bundle(folder)


class Fake(WrappedEngine):
    """A "TensorRT engine" that answers as the CPU does, a little or much too loud."""

    def __init__(self, bundle: Bundle, built: BuiltEngine, uncertified: bool) -> None:
        super().__init__(open_engine(bundle, "cpu", "float32"))
        self.name, self.precision, self.max_batch = "tensorrt", built.key.precision, 4
        self._loud = 1.0001 if self.precision == "float16" else 2.0
        assert uncertified

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        assert len(sample) <= self.max_batch
        return super().predict(sample, timestep, class_label, guidance) * np.float32(self._loud)


def run(bundle: Bundle, kind: str | None) -> dict[str, Any]:
    chosen, engine = candidates(bundle, kind), open_engine(bundle, "cpu", "float32")
    found = {}
    for candidate, answer in certify(chosen, bundle, reference(engine, bundle, 8), lambda n: None):
        found[candidate.name] = answer
        if not isinstance(answer, Failure):
            store(candidate, bundle, answer)
    return found


def test_variants_are_certified_in_bundle_json_and_engines_in_their_sidecars(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "tensorrt", replace(ENGINES["tensorrt"], open_built=Fake))
    found = run(bundle, "cpu") | run(bundle, "tensorrt")
    assert {name for name, answer in found.items() if answer.passed} == {
        "cpu float32",
        "cpu float16",
        "cpu int8",
        *(e.path.name for e in engines_beside(bundle.path) if e.key.precision == "float16"),
    }
    again = load_bundle(bundle.path)
    assert all(v.certificate is not None and v.certificate.pictures == 8 for v in again.variants.values())
    loud, true = sorted(engines_beside(bundle.path), key=lambda e: e.key.precision, reverse=False)[::-1]
    assert (loud.key.precision, true.key.precision) == ("float32", "float16")
    check_certificate(true)
    with pytest.raises(Failure, match="failed its verification"):
        check_certificate(loud)
    with pytest.raises(Failure, match="of another engine"):
        check_certificate(replace(true, sha256="1" * 64))


def test_what_cannot_be_opened_here_is_told_and_left_alone(bundle: Bundle) -> None:
    before = engines_beside(bundle.path)
    found = run(bundle, "tensorrt")
    assert len(found) == 2 and all(isinstance(answer, Failure) for answer in found.values())
    assert engines_beside(bundle.path) == before


@pytest.mark.parametrize("kind", ["cuda", "openvino"])
def test_what_other_engines_make_of_a_graph_is_found_and_not_kept(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Other(WrappedEngine):
        """Answers as float32 on the CPU does, a little too loud in bfloat16."""

        def __init__(self, bundle: Bundle, precision: str, *_: object) -> None:
            super().__init__(open_engine(bundle, "cpu", "float32"))
            self.name, self.precision, self.max_batch = kind, precision, 64

        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
        ) -> np.ndarray:
            answer = super().predict(sample, timestep, class_label, guidance)
            return answer * np.float32(1.002) if self.precision == "bfloat16" else answer

    monkeypatch.setitem(ENGINES, kind, replace(ENGINES[kind], open=Other))
    before = (bundle.path / "bundle.json").read_bytes()
    found = run(bundle, kind)
    names = ["float32", "float16", "int8", *(["bfloat16"] if kind == "openvino" else [])]
    assert list(found) == [f"{kind} {name}" for name in names] and all(answer.passed for answer in found.values())
    assert {answer.engine for answer in found.values()} == {kind}
    assert found[f"{kind} float32"].sha256 == graph_digest(bundle.variants["float32"])
    if kind == "openvino":
        low = found["openvino bfloat16"]
        assert low.limits["psnr_db"] == 28 and low.sha256 == graph_digest(bundle.variants["float32"])
    assert (bundle.path / "bundle.json").read_bytes() == before


def test_one_kind_can_be_chosen(bundle: Bundle) -> None:
    names = ["float32", "float16", "int8"]
    assert [c.name for c in candidates(bundle, "cpu")] == [f"cpu {name}" for name in names]
    assert [c.name for c in candidates(bundle, "openvino")] == [f"openvino {name}" for name in [*names, "bfloat16"]]
    assert len(candidates(bundle, "tensorrt")) == 2 and len(candidates(bundle)) == 3 + 3 + 4 + 2
    opened: Engine = candidates(bundle, "cpu")[2].open(False)
    assert opened.precision == "int8"
