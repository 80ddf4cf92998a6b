"""The ONNX graph: written by PyTorch's exporter, weights stored as float16, nothing of the training left in it."""

import copy
import logging
import warnings

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from cfgdiff.runtime.graph_file import CONDITION_INPUTS
from cfgdiff.trainer.weights import dropped_weights

from .edit import SMALL, store_half
from .fold import exported, takes_condition
from .merge import merge_products

OPSET, INPUTS = 18, ("sample", "timestep", "class_label", "guidance")


class _GroupNorm(nn.Module):
    """Group normalisation with its weight and bias as (C, 1, 1), which enter the graph unchanged, under their names.

    It is a layer normalisation, which ONNX Runtime computes on all its threads; instance normalisations on one.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = (
            nn.Parameter(p.detach()[:, None, None], requires_grad=False) for p in (norm.weight, norm.bias)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        groups = x.reshape(x.shape[0], self.groups, x[0].numel() // self.groups)
        return (
            nn.functional.layer_norm(groups, groups.shape[2:], eps=self.eps).reshape(x.shape) * self.weight + self.bias
        )


def _with_named_norms(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, _GroupNorm(child))
    return network


def rounded(network: nn.Module) -> nn.Module:
    """A copy with every weight of `SMALL` elements or more rounded to float16 and back, as the graph stores them."""
    network = copy.deepcopy(network)
    for p in network.parameters():
        if p.numel() >= SMALL:
            p.data = p.data.half().float()
    return network


def build_graph(network: nn.Module, null_class: int, image_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The guided network as ONNX, with B and G dynamic and weights named after the network's parameters."""
    b, g = torch.export.Dim("B", min=1, max=4096), torch.export.Dim("G", min=0, max=4096)
    x, t = torch.zeros(4, *image_shape), torch.zeros(4)
    inputs, names = [x, t, torch.zeros(4, dtype=torch.int64), torch.ones(3)], [*INPUTS]
    if takes_condition(network):
        inputs, names = [*inputs, x.clone(), t.clone()], [*names, *CONDITION_INPUTS]
    shapes = tuple({0: g if name == "guidance" else b} for name in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a torchvision that is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user could act on
        program = torch.onnx.export(
            exported(_with_named_norms(network), null_class).eval(), tuple(inputs), dynamo=True, opset_version=OPSET,
            input_names=names, output_names=["prediction"], dynamic_shapes=shapes,
            verbose=False, optimize=True,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _tidy(model)
    _name_merged(model, network)
    merge_products(model)
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _tidy(model: onnx.ModelProto) -> None:
    """Strip the exporter's notes (stack traces hold paths) and give the weights their own names back."""
    model.producer_name, model.producer_version, model.doc_string = "cfgdiff", "", ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    rename = {i.name: i.name.removeprefix("network.") for i in model.graph.initializer}
    for i in model.graph.initializer:
        i.name = rename[i.name]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [rename.get(name, name) for name in node.input]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]


def _name_merged(model: onnx.ModelProto, network: nn.Module) -> None:
    """Note in the metadata which weights the exporter dropped, so that training can start from the graph."""
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for key, value in dropped_weights(network, stored).items():
        model.metadata_props.add(key=key, value=value)
