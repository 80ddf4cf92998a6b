"""The check passes on a true graph and catches planted faults."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from cfgdiff.export.graph import rounded
from cfgdiff.export.verify import bundle_loss, check_graph, errors_by_level, picture_psnr
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.checkpoint import LoadedModel
from cfgdiff.trainer.engine_torch import TorchEngine
from cfgdiff.trainer.objective import test_loss as measured_loss


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


def described(model: LoadedModel) -> Bundle:
    return Bundle(Path(), "b", model.class_names, model.image_shape, model.schedule, Defaults("ddim", 4, 2.0, None), {}, {})


def test_picture_psnr_is_that_of_the_pictures(model: LoadedModel) -> None:
    class Plain(TorchEngine):
        """Draws every picture in one grey: its v leads to x0 = `grey` from everywhere."""

        grey = 0.0

        def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
            alpha, sigma = model.schedule.alpha(float(timestep[0])), model.schedule.sigma(float(timestep[0]))
            return ((alpha * sample - self.grey) / sigma).astype(np.float32)

    light, dark, bundle = Plain(model.network, 3), Plain(model.network, 3), described(model)
    light.grey, dark.grey = 0.3, 0.1  # 0.2 of [-1, 1] is a tenth of the range: 20 dB
    assert picture_psnr(light, dark, bundle) == pytest.approx(20, abs=0.3)
    assert picture_psnr(light, light, bundle) == 100


def test_errors_by_level_are_those_of_a_planted_one(model: LoadedModel) -> None:
    class Off(TorchEngine):
        """A hundredth too much, where there is much noise."""

        def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
            answer = super().predict(sample, timestep, class_label, guidance)
            return answer * 1.01 if model.schedule.ratio(float(timestep[0])) > 1.5 else answer

    found = errors_by_level(Off(model.network, 3), TorchEngine(model.network, 3), described(model), n=4)
    assert [found[f"{level:+d}"] for level in range(-5, 1)] == [0] * 6
    assert [found[f"{level:+d}"] for level in range(1, 6)] == pytest.approx([0.01] * 5, rel=1e-3)


def test_the_loss_of_a_bundle_is_that_of_its_network(model: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (40, *model.image_shape), dtype=np.uint8), rng.integers(0, 3, 40)
    expected = measured_loss(model.network, model.schedule, pictures, labels)
    assert bundle_loss(TorchEngine(model.network, 3), described(model), pictures, labels) == pytest.approx(expected, rel=1e-5)
