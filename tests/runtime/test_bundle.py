"""The packaged bundle is whole; damage of every kind is one line that names it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.bundle import SpeedRecord
from cfgdiff.runtime.errors import BadInput, Failure

RECORD = {"instructions": ["avx2", "amx_bf16"], "threads": 2, "engine": "openvino", "precision": "bfloat16", "times": 4.5}


def test_the_packaged_model_is_small_and_says_where_it_comes_from(packaged: Bundle) -> None:
    assert sum(p.stat().st_size for p in packaged.path.iterdir()) < 15e6
    assert packaged.class_names[6] == "frog" and packaged.image_shape == (3, 32, 32)
    assert {"data_set", "pictures_seen", "hours", "command", "test_loss"} <= packaged.provenance.keys()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.update(format_version=99), "format_version is 99.*update"),
        (lambda t: t.pop("format_version"), "format_version"),
        (lambda t: t.pop("class_names"), "class_names"),
        (lambda t: t.update(image_shape=[3, 32]), "image_shape"),
        (lambda t: t["schedule"].update(kind="sigmoid"), "sigmoid"),
        (lambda t: t["schedule"].update(unknown=1), "schedule"),
        (lambda t: t["defaults"].pop("steps"), "steps"),
        (lambda t: t["variants"]["float32"].update(files={}), "variants"),
        (lambda t: t["variants"]["float32"]["files"].update({"../x": "0"}), "leaves the bundle"),
        (lambda t: t.update(speeds=[RECORD, "fast"]), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds={"openvino": 2}), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds=[RECORD | {"instructions": "avx2"}]), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds=[RECORD | {"times": "4"}]), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds=[RECORD | {"times": 0}]), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds=[RECORD | {"threads": None}]), "'speeds' is missing or not as expected"),
        (lambda t: t.update(speeds=[{key: RECORD[key] for key in RECORD if key != "engine"}]), "'speeds' is missing or not as expected"),
    ],
)
def test_a_wrong_description_is_named(edited: Callable[[Callable], Path], change: Callable, expected: str) -> None:
    folder = edited(change)
    with pytest.raises(Failure, match=expected) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_or_missing_file_is_named(copied: Path) -> None:
    graph = copied / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(Failure, match=r"model\.onnx: damaged, sha256"):
        load_bundle(copied)
    graph.unlink()
    with pytest.raises(Failure, match=r"model\.onnx: listed .* missing"):
        load_bundle(copied)
    (copied / "bundle.json").write_text("{no json")
    with pytest.raises(Failure, match="not readable as JSON"):
        load_bundle(copied)
    with pytest.raises(Failure, match="no bundle there"):
        load_bundle(copied / "nowhere")


def test_speeds_are_read(edited: Callable[[Callable], Path]) -> None:
    found = load_bundle(edited(lambda tree: tree.update(speeds=[RECORD])))
    assert found.speeds == (SpeedRecord(("avx2", "amx_bf16"), 2, "openvino", "bfloat16", 4.5),)
    assert load_bundle(edited(lambda tree: tree.pop("speeds"))).speeds == ()


def test_an_unknown_variant_lists_what_there_is(packaged: Bundle) -> None:
    with pytest.raises(BadInput, match="no 'int8' variant; choose from float32"):
        packaged.variant("int8")
