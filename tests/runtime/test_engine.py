"""What there is to choose from on a CPU."""

import sys

import pytest

from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.engine import OPENERS, PACKAGES, open_at, package, precisions, ways_on_cpu
from cfgdiff.runtime.errors import BadInput


def test_float16_is_for_gpus_and_the_reference_comes_first(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfgdiff.runtime import engine as module

    monkeypatch.setattr(module, "util", type("All", (), {"find_spec": lambda name: name}))
    on_openvino = [("openvino", precision) for precision in ("float32", "int8", "bfloat16")]
    assert ways_on_cpu(small_bundle) == [("cpu", "float32"), ("cpu", "int8"), *on_openvino]
    assert precisions("cpu", small_bundle) == ["float32", "float16", "int8"]  # by name they may all be had


def test_what_is_not_installed_is_no_way(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    assert ways_on_cpu(small_bundle) == [("cpu", "float32"), ("cpu", "int8")]


def test_an_engine_is_opened_at_what_was_asked_for(small_bundle: Bundle) -> None:
    opened = open_at("cpu", small_bundle, "int8", threads=1)
    assert (opened.name, opened.precision) == ("cpu", "int8")
    with pytest.raises(BadInput, match="no 'bfloat16' variant; choose from float32, float16, int8"):
        open_at("cpu", load_bundle(small_bundle.path), "bfloat16")


def test_packages_have_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PACKAGES.keys() == OPENERS.keys() and package("cpu").startswith("onnxruntime")
    monkeypatch.setitem(PACKAGES, "cuda", ("no-such-package-at-all",))
    assert package("cuda") == ""
