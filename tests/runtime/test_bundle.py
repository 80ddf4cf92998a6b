"""The packaged bundle is whole; damage of every kind is one line that names it."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle, generate, load_bundle, open_engine
from cfgdiff.runtime.bundle import SpeedRecord, read_description
from cfgdiff.runtime.errors import BadInput, Failure

RECORD = {
    "instructions": ["avx2", "amx_bf16"],
    "threads": 2,
    "engine": "openvino",
    "precision": "bfloat16",
    "times": 4.5,
}


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
        (
            lambda t: t.update(speeds=[{key: RECORD[key] for key in RECORD if key != "engine"}]),
            "'speeds' is missing or not as expected",
        ),
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


def test_a_description_is_read_without_its_graphs(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    description, packaged = read_description(copied), load_bundle()
    assert (description.name, description.schedule, description.fitted) == (
        packaged.name, packaged.schedule, packaged.fitted,
    )  # fmt: skip
    (copied / "bundle.json").unlink()
    with pytest.raises(Failure, match=r"bundle\.json is missing"):
        read_description(copied)


def test_speeds_are_read(edited: Callable[[Callable], Path]) -> None:
    found = load_bundle(edited(lambda tree: tree.update(speeds=[RECORD])))
    assert found.speeds == (SpeedRecord(("avx2", "amx_bf16"), 2, "openvino", "bfloat16", 4.5),)
    assert load_bundle(edited(lambda tree: tree.pop("speeds"))).speeds == ()


def test_an_unknown_variant_lists_what_there_is(packaged: Bundle) -> None:
    with pytest.raises(BadInput, match="no 'int8' variant; choose from float32"):
        packaged.variant("int8")


def change_variant(tree: dict, **changes: object) -> None:
    tree["variants"]["float32"] |= changes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.update(image_shape=[3, 64, 64]),
            r"sample is of pictures \(3, 32, 32\), expected image_shape \(3, 64, 64\)",
        ),
        (lambda t: t.update(image_shape=[3, -32, -32]), "image_shape"),
        (lambda t: t.update(image_shape=[1, 10**9, 10**9]), "image_shape"),
        (lambda t: t.update(image_shape=[3.0, 32, float("inf")]), "image_shape"),
        (lambda t: t.update(class_names="frog"), "class_names"),
        (lambda t: t.update(class_names=[]), "class_names"),
        (lambda t: t.update(class_names=["a\nb"] * 10), "class_names"),
        (lambda t: t.update(class_names=["frog"]), "it is of 10 classes, expected 1 by class_names"),
        (lambda t: t.update(name="\ud800"), "not readable as JSON"),
        (lambda t: t["schedule"].update(T=10**12, kind="linear"), "schedule needs a whole T from 1 to 1000000"),
        (lambda t: t["schedule"].update(T=10.5), "schedule needs a whole T"),
        (lambda t: t["schedule"].update(data_std=10**400), "schedule needs .* data_std"),
        (lambda t: t["schedule"].update(data_std=float("nan")), "schedule needs .* data_std"),
        (lambda t: t["defaults"].update(steps=10**9), "steps"),
        (lambda t: t["defaults"].update(steps=True + 0.5), "steps"),
        (lambda t: t["defaults"].update(guidance=10**400), "guidance"),
        (lambda t: t["defaults"].update(guidance=float("inf")), "guidance"),
        (lambda t: t["defaults"].update(interval=[3, 1]), "interval"),
        (lambda t: t["fitted"]["4"].update(guidance=10**400), "fitted"),
        (lambda t: t["fitted"]["4"]["coefficients"].__setitem__(0, [float("nan")] * 4), "fitted"),
        (lambda t: t.update(fitted={"-5": t["fitted"]["4"]}), "fitted"),
        (lambda t: t["fitted"]["4"]["coefficients"].__setitem__(0, [1.0] * 5), "fitted"),
        (lambda t: t.update(speeds=[RECORD | {"times": 10**400}]), "speeds"),
        (lambda t: t.update(variants={}), "variants"),
        (lambda t: change_variant(t, precision="int8"), "variants"),
        (lambda t: change_variant(t, files={"model.onnx": 7}), "variants"),
        (lambda t: change_variant(t, certificate={"passed": "yes"}), "variants"),
        (lambda t: change_variant(t, certificate={"passed": True, "failures": [1]}), "variants"),
        (lambda t: t["variants"]["float32"]["certificate"].update(found={"prediction": {"+0": "x"}}), "variants"),
        (lambda t: t["variants"]["float32"]["certificate"].update(found=[]), "variants"),
        (lambda t: change_variant(t, files={"model.onnx": "a\nb"}), "variants"),
        (lambda t: t["variants"]["float32"]["files"].update({"a\0b": "0"}), "leaves the bundle"),
        (lambda t: t["variants"]["float32"]["files"].update({"": "0"}), "leaves the bundle"),
    ],
)
def test_a_hostile_description_is_one_line(edited: Callable[[Callable], Path], change: Callable, expected: str) -> None:
    with pytest.raises(Failure, match=expected) as error:
        load_bundle(edited(change))
    assert "\n" not in str(error.value)


def test_json_nested_deeply_and_pipes_are_refused(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    os.mkfifo(copied / "model.onnx")
    with pytest.raises(Failure, match=r"model\.onnx: listed in bundle.json but missing or not readable"):
        load_bundle(copied)
    (copied / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(Failure, match="not readable as JSON"):
        load_bundle(copied)
    (copied / "bundle.json").unlink()
    os.mkfifo(copied / "bundle.json")
    with pytest.raises(Failure, match="no bundle there"):
        load_bundle(copied)


@pytest.fixture
def regraphed(copied: Path) -> Callable[[Callable], Path]:
    """A function that changes the copy's graph, and its hash, and gives its folder."""
    onnx = pytest.importorskip("onnx", reason="needs ONNX: pip install onnx")

    def edit(change: Callable) -> Path:
        model, file, tree = (
            onnx.load(str(copied / "model.onnx")),
            copied / "model.onnx",
            json.loads((copied / "bundle.json").read_text()),
        )
        change(model)
        file.write_bytes(model.SerializeToString())
        tree["variants"]["float32"]["files"]["model.onnx"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (copied / "bundle.json").write_text(json.dumps(tree))
        return copied

    return edit


def move_out(model: Any, folder: Path, name: str) -> None:
    """The graph's largest weight goes into a file of its own."""
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (folder / name).write_bytes(weight.raw_data)
    entries = {"location": name, "offset": "0", "length": str(len(weight.raw_data))}
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    weight.data_location = 1
    weight.ClearField("raw_data")


def test_weights_in_a_file_without_a_hash_are_refused(
    regraphed: Callable[[Callable], Path], copied: Path, packaged: Bundle
) -> None:
    folder = regraphed(lambda model: move_out(model, copied, "weights.bin"))
    with pytest.raises(
        Failure, match=r"model\.onnx: reads weights from 'weights.bin', which bundle.json lists no sha256 for"
    ):
        load_bundle(folder)
    tree = json.loads((copied / "bundle.json").read_text())
    tree["variants"]["float32"]["files"]["weights.bin"] = hashlib.sha256(
        (copied / "weights.bin").read_bytes()
    ).hexdigest()
    (copied / "bundle.json").write_text(json.dumps(tree))
    drawn = [next(generate(open_engine(b, "cpu"), b, ["frog"], 2))[1] for b in (load_bundle(copied), packaged)]
    assert (drawn[0] == drawn[1]).all()  # listed, it is read
    data = bytearray((copied / "weights.bin").read_bytes())
    data[::2] = bytes(len(data[::2]))
    (copied / "weights.bin").write_bytes(data)
    with pytest.raises(Failure, match=r"weights\.bin: damaged, sha256"):
        load_bundle(copied)


def hide(model: Any) -> None:
    """A constant inside a branch that never runs reads a file."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="hidden", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="/etc/hostname")
    branch = helper.make_graph([helper.make_node("Constant", [], ["hidden"], value=tensor)], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def more_inputs(model: Any) -> None:
    model.graph.input.append(model.graph.input[1])
    model.graph.input[-1].name = "more"


def set_dim(value: Any, i: int, n: int) -> None:
    value.type.tensor_type.shape.dim[i].dim_value = n


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (hide, "reads weights from '/etc/hostname'"),
        (
            more_inputs,
            "its inputs are sample, timestep, class_label, guidance, more; "
            "expected sample, timestep, class_label, guidance",
        ),
        (lambda m: m.graph.input.pop(), "its inputs are sample, timestep, class_label; expected"),
        (lambda m: setattr(m.graph.output[0], "name", "eps"), "its outputs are eps; expected prediction"),
        (lambda m: set_dim(m.graph.input[0], 0, 4), "sample is for a batch of 4 alone; expected any"),
        (
            lambda m: set_dim(m.graph.output[0], 3, -5),
            r"prediction is of pictures \(3, 32, \d+\), expected image_shape",
        ),
        (lambda m: m.ClearField("graph"), "its inputs are none"),
    ],
)
def test_a_graph_that_cannot_draw_is_named(
    regraphed: Callable[[Callable], Path], change: Callable, expected: str
) -> None:
    with pytest.raises(Failure, match=expected) as error:
        load_bundle(regraphed(change))
    assert "\n" not in str(error.value)


def test_a_bundle_that_a_killed_export_left_aside_gets_its_name_back(copied: Path) -> None:
    copied.rename(copied.with_name(".bundle.old"))
    assert load_bundle(copied).path == copied and [p.name for p in copied.parent.iterdir()] == ["bundle"]


def fewer_classes(model: Any) -> None:
    """The table of classes loses rows."""
    from onnx import numpy_helper

    table = next(tensor for tensor in model.graph.initializer if tensor.name == "label.weight")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:5], table.name))


def test_what_onnx_runtime_says_while_drawing_is_one_line(
    regraphed: Callable[[Callable], Path], capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    bundle = load_bundle(regraphed(fewer_classes))
    for n in (1, 20):  # in one part, and shared out among threads
        with pytest.raises(
            Failure, match=rf"model\.onnx: ONNX Runtime fails for a batch of {n} \(.*out of data bounds"
        ) as error:
            list(generate(open_engine(bundle, "cpu", threads=2), bundle, ["truck"] * n, 2))
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"guidance_input": [1, float("inf")]}, "guidance_input"),
        ({"guidance_input": [8, 1]}, "guidance_input"),
        ({"few_steps": 1}, "few_steps"),
        ({"few_steps": True, "fitted": {}}, "few_steps"),
    ],
)
def test_a_network_of_few_steps_that_is_described_wrongly_is_refused(
    edited: Callable[[Callable[[dict], None]], Path], change: dict, named: str
) -> None:
    with pytest.raises(Failure, match=f"'{named}' is missing or not as expected"):
        load_bundle(edited(lambda tree: tree.update(change)))
