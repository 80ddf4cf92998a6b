"""The packaged model, and copies of it to damage; a small network with awake branches, and the bundle made of it."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cfgdiff.benchmarks.alexnet import LAYERS
from cfgdiff.runtime import Bundle, Engine, engines, load_bundle, open_engine, speeds
from cfgdiff.runtime.bundle import Defaults, Model
from cfgdiff.runtime.engines import ENGINES
from cfgdiff.runtime.errors import Failure


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept in, or taken from, the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class FakeCpu:
    """A machine without a GPU, whose engines answer by a formula and take the time a test sets, on a fake clock.

    Attributes:
        kinds: {(engine, precision): {opened, call, row: seconds; noise: relative error; mixed: share of the batch in
            each row; fails}}.
        opened: what was opened, in order.
    """

    def __init__(self) -> None:
        self.now, self.kinds, self.opened = 0.0, dict[tuple[str, str], dict[str, Any]](), list[tuple[str, str]]()

    def clock(self) -> float:
        return self.now

    def opener(self, name: str) -> Callable[..., Any]:
        def open_fake(bundle: Bundle, precision: str, threads: int | None, uncertified: bool) -> Any:
            kind = self.kinds.get((name, precision), {"fails": "not here; pip install it"})
            if "fails" in kind:
                raise Failure(kind["fails"])
            self.now += kind["opened"]
            self.opened.append((name, precision))
            return SimpleNamespace(
                name=name, precision=precision, max_batch=4096, predict=partial(self.predict, kind), close=lambda: None
            )

        return open_fake

    def predict(
        self, kind: dict[str, Any], x: np.ndarray, t: np.ndarray, label: np.ndarray, w: np.ndarray
    ) -> np.ndarray:
        self.now += kind["call"] + kind["row"] * (len(x) + len(w))
        uncond, share = 0.5 * np.sin(x), (0.1 * label).astype(np.float32).reshape(-1, 1, 1, 1)
        answer = uncond + share
        answer[: len(w)] = uncond[: len(w)] + w.reshape(-1, 1, 1, 1) * share[: len(w)]
        answer = answer * np.float32(1 + kind.get("noise", 0))
        return np.asarray(answer + kind.get("mixed", 0) * answer.mean(axis=0), np.float32)


@pytest.fixture
def set_openers(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Callable[..., Any]]], None]:
    """A function that leaves the engines of these names alone, in this order, and opens them in another way."""
    originals = dict(ENGINES)

    def put(openers: dict[str, Callable[..., Any]]) -> None:
        for name in reversed(ENGINES.copy()):  # so that they come back in order
            monkeypatch.delitem(ENGINES, name)
        for name, opener in openers.items():
            monkeypatch.setitem(ENGINES, name, replace(originals[name], open=opener))

    return put


@pytest.fixture
def fake_cpu(monkeypatch: pytest.MonkeyPatch, set_openers: Callable[[dict[str, Callable[..., Any]]], None]) -> FakeCpu:
    """Float32 on ONNX Runtime, and on OpenVINO float32, as fast, and bfloat16, slow to open and four times as fast."""
    found = FakeCpu()
    found.kinds = {
        ("cpu", "float32"): {"opened": 0.2, "call": 0.001, "row": 0.004},
        ("openvino", "float32"): {"opened": 1.0, "call": 0.002, "row": 0.004},
        ("openvino", "bfloat16"): {"opened": 0.5, "call": 0.002, "row": 0.001, "noise": 1e-3},
    }
    set_openers({name: found.opener(name) for name in engines.cpu_engines()})
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: name))  # all are installed
    monkeypatch.setattr(speeds, "PAUSE", 0)
    monkeypatch.setattr(speeds, "measure", partial(speeds.measure, clock=found.clock))
    return found


@pytest.fixture(scope="session")
def packaged() -> Bundle:
    """The packaged bundle."""
    return load_bundle()


@pytest.fixture(scope="session")
def engine(packaged: Bundle) -> Engine:
    """An engine for the packaged bundle."""
    return open_engine(packaged, "cpu", threads=2)


@pytest.fixture
def copied(packaged: Bundle, tmp_path: Path) -> Path:
    """A copy of the packaged bundle."""
    return Path(shutil.copytree(packaged.path, tmp_path / "bundle"))


@pytest.fixture
def edited(copied: Path) -> Callable[[Callable[[dict], None]], Path]:
    """A function that changes the copy's bundle.json and gives its folder."""

    def edit(change: Callable[[dict], None]) -> Path:
        tree = json.loads((copied / "bundle.json").read_text())
        change(tree)
        (copied / "bundle.json").write_text(json.dumps(tree))
        return copied

    return edit


@pytest.fixture
def write_cifar() -> Callable[..., np.ndarray]:
    """A function (root, n) that writes a CIFAR-10 of random pictures; returns those for training, (5 n, 3, 32, 32)."""

    def write(root: Path, n: int = 6) -> np.ndarray:
        folder = root / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        rng, parts = np.random.default_rng(0), []
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            parts.append(rng.integers(0, 256, (n, 3072), dtype=np.uint8))
            (folder / name).write_bytes(
                pickle.dumps({b"data": parts[-1], b"labels": [i % 10 for i in range(n)]}, protocol=2)
            )
        names = b"airplane automobile bird cat deer dog frog horse ship truck".split()
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
        return np.concatenate(parts[:5]).reshape(-1, 3, 32, 32)

    return write


@pytest.fixture(scope="session")
def model() -> object:
    """A `LoadedModel` of a small random network for 16x16 pictures and 3 classes."""
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from cfgdiff.trainer.config import make_config
    from cfgdiff.trainer.unet import UNet
    from cfgdiff.trainer.weights import LoadedModel

    config = make_config(
        {"network": {"channels": 16, "multipliers": [1, 2], "attention": [4], "head_channels": 16, "patch": 2}}
    )
    torch.manual_seed(0)
    network = UNet(config.network, (3, 16, 16), 3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    network.eval().requires_grad_(False)
    return LoadedModel(network, config, ["a", "b", "c"], (3, 16, 16), config.schedule, {"pictures_seen": 0})


@pytest.fixture(scope="session")
def small_source(model: object) -> object:
    """Its graph and description, as export takes them from a checkpoint."""
    from cfgdiff.export.source import from_checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter
        return from_checkpoint(model, "small", Defaults("ddim", 3, 2.0, (0.1, 50.0)))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def graph(small_source: object) -> object:
    """Its ONNX graph."""
    return small_source.graph  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def described(model: object) -> object:
    """Its `Model`."""
    defaults = Defaults("ddim", 4, 2.0, None)
    return Model("b", model.class_names, model.image_shape, model.schedule, defaults)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def small_bundle(small_source: object, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of it on disk, in all precisions."""
    from cfgdiff.export.write import write_bundle

    folder = tmp_path_factory.mktemp("small") / "small"
    write_bundle(small_source, folder, ("float16", "int8"))  # type: ignore[arg-type]
    return load_bundle(folder)


@pytest.fixture(scope="session")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A cascade on disk: a random base for 8x8, and random stages to 16x16 (with int8) and 32x32."""
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from stages import cascade_sources

    from cfgdiff.export.write import write_bundle

    folder = tmp_path_factory.mktemp("cascade") / "cascade"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter
        base, *stages = cascade_sources()
    write_bundle(base, folder, ("int8",), stages=stages)
    return load_bundle(folder)


@pytest.fixture(scope="session")
def drawn_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet's shapes that keep the scale of what passes through."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the train extra: pip install 'cfgdiff[train]'")
    rng, tensors = np.random.default_rng(0), {}
    for layer, (shape, *_) in LAYERS.items():
        gain = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        tensors[f"{layer}.weight"] = rng.standard_normal(shape, np.float32) * gain
        tensors[f"{layer}.bias"] = rng.standard_normal(shape[0], np.float32) * np.float32(0.1)
    path = tmp_path_factory.mktemp("alexnet") / "drawn.safetensors"
    safetensors.save_file(tensors, path)
    return Path(path)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many cases of each kind tests/fuzz tries, and from which on; sizes of the server's tests."""
    parser.addoption("--fuzz-n", type=int, default=500, help="cases of each kind in tests/fuzz")
    parser.addoption("--fuzz-from", type=int, default=0, help="number of the first case")
    parser.addoption("--api-examples", type=int, default=8, help="requests of each kind to each path of the server")
    parser.addoption("--soak-n", type=int, default=2000, help="requests to the server whose memory is watched")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands go first: they take longest, and files are handed to the processes in order."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
