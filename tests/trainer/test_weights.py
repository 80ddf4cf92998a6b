"""Weights to start from are those of a checkpoint, run or checked bundle, under the network's names."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.weights import CONSTANT, SAME, dropped_weights, graph_weights, initial_weights


def write_graph(file: Path, notes: dict[str, str], **arrays: np.ndarray) -> None:
    """An ONNX file with nothing but these weights and this metadata."""
    graph = onnx.helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    )
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, file)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no checkpoint there"):
        initial_weights(tmp_path)


def test_a_graph_that_is_damaged_or_not_finite_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(Failure, match=r"model\.onnx: not a readable ONNX file"):
        graph_weights(tmp_path / "model.onnx")
    write_graph(tmp_path / "model.onnx", {}, stem=np.array([1, np.nan], np.float32))
    with pytest.raises(Failure, match=r"model\.onnx: stem holds values that are not finite"):
        graph_weights(tmp_path / "model.onnx")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"provenance": 3}'])
def test_a_bundle_that_does_not_say_where_its_weights_come_from_is_refused(copied: Path, text: str) -> None:
    (copied / "bundle.json").write_text(text)
    with pytest.raises(Failure, match=r"bundle\.json: "):
        initial_weights(copied)


def test_weights_of_a_damaged_bundle_are_not_started_from(copied: Path) -> None:
    assert "stem.weight" in initial_weights(copied)[0]
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(data)
    with pytest.raises(Failure, match=r"model\.onnx: damaged, sha256"):
        initial_weights(copied)


def test_the_graph_is_the_one_that_the_bundle_names(copied: Path) -> None:
    expected, provenance = initial_weights(copied)
    text = (copied / "bundle.json").read_text()
    (copied / "model.onnx").rename(copied / "other.onnx")
    (copied / "bundle.json").write_text(text.replace('"model.onnx"', '"other.onnx"'))
    weights, same = initial_weights(copied)
    assert weights.keys() == expected.keys() and all(
        torch.equal(value, weights[name]) for name, value in expected.items()
    )
    assert same == provenance == {k: v for k, v in load_bundle(copied).provenance.items() if k != "errors"}


def test_weights_that_the_exporter_dropped_come_back_under_their_names(tmp_path: Path) -> None:
    network = torch.nn.ModuleDict({"kept": torch.nn.Linear(2, 3, bias=False), "lost": torch.nn.Linear(2, 3)})
    network["lost"].weight.data.copy_(network["kept"].weight)
    torch.nn.init.constant_(network["lost"].bias, 0.5)
    for p in network.parameters():
        p.requires_grad_(False)
    stored = {"kept.weight": network["kept"].weight.numpy()}
    notes = dropped_weights(network, stored)
    assert notes == {
        f"{SAME}:lost.weight": "kept.weight",
        f"{CONSTANT}:lost.bias": json.dumps({"value": 0.5, "shape": [3]}),
    }
    write_graph(tmp_path / "a.onnx", notes, **stored)
    weights = graph_weights(tmp_path / "a.onnx")
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
