"""The files of a Triton repository, against Triton's own protobuf; and that they are written whole or not at all."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_triton import Server, model_config_pb2, read_config, text_format, type_name

from cfgdiff.export import triton
from cfgdiff.export.triton import write_repository
from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import BuiltEngine, EngineKey, graph_digest, write_sidecar


@pytest.mark.parametrize("name", ["cifar10-turbo", "cifar10-small"])
def test_config_and_files(name: str, tmp_path: Path) -> None:
    bundle = load_bundle(name)
    c, h, w = bundle.image_shape
    names = write_repository(bundle, tmp_path / "new" / "models")
    assert names == [name, f"{name}_network"]
    loop, network = (read_config(tmp_path / "new" / "models" / each) for each in names)
    assert [(io.name, type_name(io), list(io.dims), io.optional) for io in loop.input] == [
        ("class_label", "TYPE_INT64", [1], False),
        ("seed", "TYPE_UINT64", [1], False),
        ("index", "TYPE_UINT64", [1], True),
        ("guidance", "TYPE_FP32", [1], True),
        ("steps", "TYPE_INT32", [1], True),
    ]
    assert [(io.name, type_name(io), list(io.dims)) for io in loop.output] == [("picture", "TYPE_UINT8", [h, w, c])]
    assert json.loads(loop.parameters["class_names"].string_value) == bundle.class_names
    assert loop.backend == "python" and [group.kind for group in loop.instance_group] == [
        loop.instance_group[0].KIND_CPU
    ]
    assert network.backend == "onnxruntime" and not network.instance_group  # so that every GPU gets one
    assert network.HasField("dynamic_batching") and loop.HasField("dynamic_batching")
    assert loop.max_batch_size == network.max_batch_size == 256
    (cuda,) = network.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    files = {str(path.relative_to(tmp_path / "new" / "models")) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *(f"{name}/config.pbtxt" for name in names), f"{names[0]}/1/model.py", f"{names[0]}/1/bundle.json",
        f"{names[1]}/1/model.onnx",
    }  # fmt: skip


def test_the_settings_of_the_page_are_those_of_triton() -> None:
    page = (Path(__file__).parents[2] / "docs" / "triton.md").read_text()
    settings = re.findall(r"`((?:instance_group|parameters|max_batch_size)[: ][^`]+)`", page)
    parsed = [text_format.Parse(text, model_config_pb2.ModelConfig()) for text in settings]
    assert len(parsed) >= 5 and all(config.ByteSize() for config in parsed)


def test_a_folder_that_holds_something_is_refused(packaged: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(Failure, match="exists and is not empty"):
            write_repository(packaged, target)
    write_repository(packaged, tmp_path / "empty")
    assert sorted(os.listdir(tmp_path / "empty")) == ["cifar10-small", "cifar10-small_network"]


def test_it_is_written_whole_or_not_at_all(packaged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if target.name == "bundle.json":  # the network is there by then
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(triton.shutil, "copyfile", full)
    with pytest.raises(Failure, match=r"cannot be written \(No space left on device\)"):
        write_repository(packaged, tmp_path / "models")
    assert os.listdir(tmp_path) == []


def test_names_that_triton_does_not_take_and_class_names_with_quotes(
    edited: Callable[..., Path], tmp_path: Path
) -> None:  # fmt: skip
    def rename(tree: dict[str, Any], name: str) -> None:
        tree["name"], tree["class_names"][0] = name, 'a "plane" \\ é'

    bundle = load_bundle(edited(lambda tree: rename(tree, "../mine")))
    with pytest.raises(Failure, match=r"letters, digits, '.', '_' and '-', found '\.\./mine'"):
        write_repository(bundle, tmp_path / "models")
    write_repository(load_bundle(edited(lambda tree: rename(tree, "mine.v2"))), tmp_path / "models")
    config = read_config(tmp_path / "models" / "mine.v2")
    assert json.loads(config.parameters["class_names"].string_value)[0] == 'a "plane" \\ é'


def _with_variant(folder: Path, precision: str) -> Bundle:
    """A bundle with another variant, whose graph has its weights in a file of their own by name."""
    tree = json.loads((folder / "bundle.json").read_text())
    shutil.copyfile(folder / "model.onnx", folder / f"model-{precision}.onnx")
    (folder / "weights.bin").write_bytes(b"weights")
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (f"model-{precision}.onnx", "weights.bin")
    }
    tree["variants"][precision] = {"graph": f"model-{precision}.onnx", "precision": precision, "files": files}
    (folder / "bundle.json").write_text(json.dumps(tree))
    return load_bundle(folder)


def test_another_variant_with_all_its_files(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Failure, match=r"has no float16 variant, only float32; cfgdiff export .* --fp16 --out NEW adds it"
    ):
        write_repository(load_bundle(copied), tmp_path / "models", "float16")
    model, network = write_repository(_with_variant(copied, "float16"), tmp_path / "models", "float16")
    assert sorted(os.listdir(tmp_path / "models" / network / "1")) == ["model.onnx", "weights.bin"]
    assert Server(tmp_path / "models").configs[model].parameters["precision"].string_value == "float16"


@pytest.fixture
def write_plan(copied: Path) -> Callable[..., BuiltEngine]:
    """A function that puts a TensorRT engine beside the copied bundle."""

    def write(
        module: str = "tensorrt", profile: tuple[int, int, int] = (1, 16, 48), passed: bool | None = True
    ) -> BuiltEngine:
        digest = hashlib.sha256(b"plan").hexdigest()
        graph = graph_digest(load_bundle(copied).variant("float32"))
        key = EngineKey(graph, module, "10.13", ("8.9",), "any", "float32", profile)
        certificate = None if passed is None else Certificate(passed, digest, failures=() if passed else ("it is off",))
        engine = BuiltEngine(copied / key.file_name, key, digest, certificate)
        engine.path.write_bytes(b"plan")
        write_sidecar(engine)
        return engine

    return write


@pytest.mark.parametrize("passed", [True, None])
def test_an_engine_of_tensorrt(
    write_plan: Callable[..., BuiltEngine], copied: Path, tmp_path: Path, passed: bool
) -> None:
    write_plan("tensorrt_rtx")
    write_plan(profile=(8, 16, 64))
    write_plan(passed=passed)
    _, network = write_repository(load_bundle(copied), tmp_path / "models", tensorrt=True)
    assert (tmp_path / "models" / network / "1" / "model.plan").read_bytes() == b"plan"
    configs = [read_config(folder) for folder in sorted((tmp_path / "models").iterdir())]
    assert [config.backend for config in configs] == ["python", "tensorrt"]
    assert [config.max_batch_size for config in configs] == [48, 48] and not configs[1].HasField("optimization")


def test_engines_that_triton_cannot_load_or_that_failed(
    write_plan: Callable[..., BuiltEngine], copied: Path, tmp_path: Path
) -> None:  # fmt: skip
    write_plan("tensorrt_rtx")
    write_plan(profile=(8, 16, 64))
    with pytest.raises(Failure, match=r"no float32 engine of TensorRT for batches from 1 on .*--tensorrt$"):
        write_repository(load_bundle(copied), tmp_path / "models", tensorrt=True)
    damaged = write_plan(passed=False)
    with pytest.raises(Failure, match=r"failed its verification \(it is off\)"):
        write_repository(load_bundle(copied), tmp_path / "models", tensorrt=True)
    damaged.path.write_bytes(b"plam")
    with pytest.raises(Failure, match="damaged, sha256 is"):
        write_repository(load_bundle(copied), tmp_path / "models", tensorrt=True)
    assert not (tmp_path / "models").exists()
