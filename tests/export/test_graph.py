"""The graph: contract, names of weights, no traces of its making, the same bytes twice."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from cfgdiff.export.edit import SMALL
from cfgdiff.export.graph import OPSET, build_graph, rounded
from cfgdiff.export.parity import check_graph
from cfgdiff.runtime import Bundle
from cfgdiff.trainer.unet import ResidualBlock, UNet
from cfgdiff.trainer.weights import LoadedModel, graph_weights


def test_inputs_and_outputs_are_the_contract(graph: onnx.ModelProto) -> None:
    def describe(value: onnx.ValueInfoProto) -> tuple:
        kind = value.type.tensor_type
        return value.name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]

    batch = describe(graph.graph.input[0])[2][0]
    assert isinstance(batch, str)
    assert [describe(v)[:2] for v in graph.graph.input] == [
        ("sample", 1),
        ("timestep", 1),
        ("class_label", 7),
        ("guidance", 1),
    ]
    assert describe(graph.graph.input[0])[2] == [batch, 3, 16, 16] and isinstance(
        describe(graph.graph.input[3])[2][0], str
    )
    assert [v.name for v in graph.graph.output] == ["prediction"]
    assert {o.domain: o.version for o in graph.opset_import}[""] >= OPSET


def test_weights_keep_their_names_and_big_ones_are_halves(graph: onnx.ModelProto, model: LoadedModel) -> None:
    stored = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    for name, p in model.network.named_parameters():
        assert stored[name].dtype == (np.float16 if p.numel() >= SMALL else np.float32)
        np.testing.assert_allclose(stored[name].astype(np.float32).reshape(p.shape), p.numpy(), rtol=1e-3, atol=1e-6)


def test_a_run_can_start_from_the_graph(graph: onnx.ModelProto, model: LoadedModel, tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    weights, expected = graph_weights(tmp_path / "model.onnx"), rounded(model.network).state_dict()
    assert all(torch.equal(weights[name].reshape(value.shape), value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore")
def test_merged_weights_keep_both_names(model: LoadedModel, tmp_path) -> None:
    network = copy.deepcopy(model.network)
    for p in network.parameters():
        p.data.fill_(0.25)  # all weights of a shape are equal, so the exporter merges them
    (tmp_path / "model.onnx").write_bytes(build_graph(network, 3, model.image_shape).SerializeToString())
    weights = graph_weights(tmp_path / "model.onnx")
    assert all(torch.equal(weights[name].reshape(value.shape), value) for name, value in network.state_dict().items())


class Untrained(torch.nn.Module):
    """A network whose bias is still zero, with a head that only its training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.label, self.head = (
            torch.nn.Conv2d(3, 3, 3, padding=1),
            torch.nn.Embedding(4, 3),
            torch.nn.Linear(40, 2),
        )
        torch.nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), (B,), (B,) -> (B, 3, H, W)."""
        return self.conv(x) + self.label(label)[:, :, None, None] + t[:, None, None, None]


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_away_or_not_used(tmp_path: Path) -> None:
    network = Untrained().eval().requires_grad_(False)
    graph = build_graph(network, 3, (3, 8, 8))
    assert "conv.bias" not in {i.name for i in graph.graph.initializer}
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    weights, expected = graph_weights(tmp_path / "model.onnx"), network.state_dict()
    assert {name for name in expected if name not in weights} == {"head.weight", "head.bias"}
    assert all(
        torch.equal(weights[name].reshape(value.shape), value) for name, value in expected.items() if name in weights
    )


@pytest.mark.filterwarnings("ignore")
def test_the_same_weights_give_the_same_bytes_without_traces(graph: onnx.ModelProto, model: LoadedModel) -> None:
    again = build_graph(rounded(model.network), 3, model.image_shape)
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)
    text = str(graph.graph.node) + str(graph.metadata_props)
    assert "/" not in text.replace("::", "") or "site-packages" not in text
    assert not any(n.doc_string or n.metadata_props for n in graph.graph.node)


@pytest.mark.parametrize("which", ["built", "packaged"])
def test_nothing_is_multiplied_by_one_or_added_to_zero(graph: onnx.ModelProto, packaged: Bundle, which: str) -> None:
    """What PyTorch's exporter leaves behind a group normalisation, and ONNX Runtime computes."""
    found = graph if which == "built" else onnx.load(str(packaged.path / packaged.variant("float32").graph))
    stored = {
        i.name: numpy_helper.to_array(i) for i in found.graph.initializer if not i.name.endswith((".weight", ".bias"))
    }
    for node in found.graph.node:
        if node.op_type in ("Mul", "Add") and node.input[1] in stored:
            assert not (stored[node.input[1]] == (node.op_type == "Mul")).all(), node.name
    kinds = {node.op_type for node in found.graph.node}
    assert "InstanceNormalization" not in kinds  # ONNX Runtime computes it on one thread
    assert ("LayerNormalization" in kinds) == (which == "built")


@pytest.fixture(scope="module")
def bare(model: LoadedModel) -> UNet:
    """The small network without normalisation."""
    torch.manual_seed(0)
    network = (
        UNet(model.config.network.model_copy(update={"norm": "affine"}), model.image_shape, 3)
        .eval()
        .requires_grad_(False)
    )
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.filterwarnings("ignore")
def test_a_network_without_normalisation_is_a_graph_without(
    bare: UNet, model: LoadedModel, graph: onnx.ModelProto
) -> None:
    found = build_graph(bare, 3, model.image_shape)
    assert check_graph(found.SerializeToString(), rounded(bare), 3, model.image_shape) < 1e-5
    before, after = (Counter(node.op_type for node in g.graph.node) for g in (graph, found))
    assert before["LayerNormalization"] and not after["LayerNormalization"] and after["Conv"] == before["Conv"]
    blocks = sum(isinstance(m, ResidualBlock) for m in bare.modules())
    assert (
        before["Mul"] - after["Mul"] == before["LayerNormalization"]
        and after["Sigmoid"] == before["Sigmoid"] >= 2 * blocks
    )


@pytest.mark.parametrize("which", ["built", "packaged"])
def test_attention_moves_no_data_in_onnx_runtime(
    graph: onnx.ModelProto, packaged: Bundle, tmp_path: Path, which: str
) -> None:
    """Its transpositions become flags of the products; what is left is the pixel-unshuffled stem's."""
    found = graph if which == "built" else onnx.load(str(packaged.path / packaged.variant("float32").graph))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    assert (
        kinds["Softmax"] > 0
        and kinds["FusedMatMul"] == 2 * kinds["Softmax"]
        and not kinds["MatMul"]
        and kinds["Transpose"] <= 1
    )
