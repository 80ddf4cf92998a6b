"""A bundle is made from a bundle as well as from a checkpoint."""

from pathlib import Path

import onnx
import pytest

from cfgdiff.export.source import check_source, from_bundle
from cfgdiff.export.write import write_bundle
from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import Failure


def test_a_bundle_can_be_exported_anew_with_the_same_bytes(small_bundle: Bundle, tmp_path: Path) -> None:
    again = from_bundle(small_bundle.path, "small", {})
    write_bundle(again, tmp_path / "b", ("float16", "int8"))
    for variant in small_bundle.variants.values():
        assert (tmp_path / "b" / variant.graph).read_bytes() == (small_bundle.path / variant.graph).read_bytes(), (
            variant.graph
        )
    changed = from_bundle(small_bundle.path, "other", {"steps": 7, "guidance": 3.0})
    write_bundle(changed, tmp_path / "c")
    found = load_bundle(tmp_path / "c")
    assert (found.name, found.defaults) == ("other", Defaults("ddim", 7, 3.0, (0.1, 50.0)))
    assert found.provenance == small_bundle.provenance


def test_the_packaged_model_is_the_default_and_loses_what_does_nothing(packaged: Bundle) -> None:
    found, stored = from_bundle(None, "again", {}), onnx.load(str(packaged.path / "model.onnx"))
    assert found.description["name"] == "again" and found.description["provenance"] == packaged.provenance
    weights = {i.name for i in stored.graph.initializer if i.name.endswith((".weight", ".bias"))}
    assert weights <= {i.name for i in found.graph.graph.initializer} and len(found.graph.graph.node) <= len(
        stored.graph.node
    )


def test_a_bundle_is_no_checkpoint(packaged: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is a bundle, expected a run or checkpoint; export from it with --from-bundle"):
        check_source(packaged.path)
    check_source(tmp_path)
