"""The check passes on a true graph and catches planted faults."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from cfgdiff.export.graph import rounded
from cfgdiff.export.parity import bundle_measures, check_graph
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.engine_torch import TorchEngine
from cfgdiff.trainer.objective import held_out_loss, rate
from cfgdiff.trainer.weights import LoadedModel


def test_the_true_graph_agrees_with_pytorch(graph: onnx.ModelProto, model: LoadedModel) -> None:
    assert check_graph(graph.SerializeToString(), rounded(model.network), 3, model.image_shape) < 1e-4


@pytest.mark.parametrize("fault", ["swap", "weight"])
def test_planted_faults_are_caught(graph: onnx.ModelProto, model: LoadedModel, fault: str) -> None:
    network = rounded(model.network)
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    if fault == "weight":
        with torch.no_grad():
            next(network.parameters()).add_(0.01)
    else:  # cond - uncond the other way round
        node = next(n for n in broken.graph.node if n.op_type == "Sub" and len(n.input) == 2)
        node.input[:] = reversed(node.input)
        assert helper.printable_node(node)
    with pytest.raises(Failure, match=r"differs from PyTorch by .* at \(B, G\)"):
        check_graph(broken.SerializeToString(), network, 3, model.image_shape)


def test_the_measures_of_a_bundle_are_those_of_its_network(model: LoadedModel, described: Bundle) -> None:
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (40, *model.image_shape), dtype=np.uint8), rng.integers(0, 3, 40)
    held_out = (model.network, model.schedule, pictures, labels)
    expected = {"test_loss": held_out_loss(*held_out), "rate": rate(*held_out)}
    assert bundle_measures(TorchEngine(model.network, 3), described, pictures, labels) == pytest.approx(
        expected, rel=1e-5
    )
