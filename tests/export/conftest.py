"""A small network with awake branches, and the model around it."""

import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")


@pytest.fixture(scope="session")
def model() -> object:
    """A `LoadedModel` of a small random network for 16x16 pictures and 3 classes."""
    from cfgdiff.trainer.checkpoint import LoadedModel
    from cfgdiff.trainer.config import make_config
    from cfgdiff.trainer.unet import UNet

    config = make_config({"network": {"channels": 16, "multipliers": [1, 2], "attention": [4], "head_channels": 16, "patch": 2}})
    torch.manual_seed(0)
    network = UNet(config.network, (3, 16, 16), 3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, ["a", "b", "c"], (3, 16, 16), config.schedule, {"pictures_seen": 0})


@pytest.fixture(scope="session")
def graph(model: object) -> object:
    """Its ONNX graph."""
    from cfgdiff.export.graph import build_graph, rounded

    return build_graph(rounded(model.network), 3, model.image_shape)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def described(model: object) -> object:
    """A `Bundle` of it that is not on disk."""
    from cfgdiff.runtime import Bundle
    from cfgdiff.runtime.bundle import Defaults

    return Bundle(Path(), "b", model.class_names, model.image_shape, model.schedule, Defaults("ddim", 4, 2.0, None), {}, {})  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def small_bundle(model: object, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A bundle of it on disk, in all precisions."""
    from cfgdiff.export.source import from_checkpoint
    from cfgdiff.export.write import write_bundle
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.bundle import Defaults

    folder = tmp_path_factory.mktemp("small") / "small"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter
        source = from_checkpoint(model, "small", Defaults("ddim", 3, 2.0, (0.1, 50.0)))  # type: ignore[arg-type]
    write_bundle(source, folder, ("float16", "int8"))
    return load_bundle(folder)
