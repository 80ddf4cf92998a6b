"""The Triton repository, against Triton's own protobuf and a strict stand-in of the server (`fake_triton`)."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import Incoming, Refused, Server, TritonError, read_config, type_name

from cfgdiff.export import triton
from cfgdiff.export.triton import write_repository
from cfgdiff.runtime import Bundle, Engine, generate, load_bundle, open_engine
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.sidecar import BuiltEngine, EngineKey, graph_digest, write_sidecar

Served = tuple[Bundle, Engine, Server]


@pytest.fixture(scope="module", params=["cifar10-turbo", "cifar10-small"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A packaged model, its engine, and a server of its repository."""
    bundle, folder = load_bundle(request.param), tmp_path_factory.mktemp("served") / "models"
    write_repository(bundle, folder)
    return bundle, open_engine(bundle, "cpu", "float32", threads=1), Server(folder)


@pytest.fixture(scope="module")
def _turbo(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("turbo") / "models"
    write_repository(load_bundle("cifar10-turbo"), folder)
    return Server(folder)


@pytest.fixture
def turbo(_turbo: Server) -> Server:
    """A server of cifar10-turbo that nobody has called yet."""
    _turbo.calls, _turbo.fail = [], ""
    return _turbo


def rows(n: int, **more: object) -> dict[str, np.ndarray]:
    """A request for n pictures of class 0 .. 9, seed 5, numbers 0 .. n - 1."""
    kinds = {"guidance": np.float32, "steps": np.int32, "class_label": np.int64}
    values = {"class_label": np.arange(n) % 10, "seed": 5, "index": np.arange(n)} | more
    return {
        name: np.broadcast_to(np.array(value, kinds.get(name, np.uint64)), n).reshape(n, 1).copy()
        for name, value in values.items()
    }


def drawn(answer: Any) -> np.ndarray:
    """The pictures of an answer."""
    assert not isinstance(answer, TritonError), answer.message()
    return answer["picture"].astype(int)


def local(bundle: Bundle, engine: Engine, n: int, **settings: Any) -> np.ndarray:
    """The pictures of `rows(n)` as `generate` draws them."""
    classes = [k % 10 for k in range(n)]
    return np.concatenate([p for _, p in generate(engine, bundle, classes, seed=5, **settings)]).astype(int)


def test_config_and_files(served: Served, tmp_path: Path) -> None:
    bundle, _, server = served
    c, h, w = bundle.image_shape
    loop, network = server.configs[bundle.name], server.configs[f"{bundle.name}_network"]
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
    names = write_repository(bundle, tmp_path / "new" / "models")
    files = {str(path.relative_to(tmp_path / "new" / "models")) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *(f"{name}/config.pbtxt" for name in names), f"{names[0]}/1/model.py", f"{names[0]}/1/bundle.json",
        f"{names[1]}/1/model.onnx",
    }  # fmt: skip


def test_the_network_answers_joined_requests_as_the_engine_does(served: Served) -> None:
    """Triton concatenates the inputs of requests: each then has guidance for all of its rows, w = 1 for none."""
    bundle, engine, server = served
    name, rng, requests = f"{bundle.name}_network", np.random.default_rng(0), []
    for n in (1, 3, 2, 7):
        x = normals(n, np.arange(n), 0, bundle.image_shape)
        t, label = rng.uniform(1, 999, n).astype(np.float32), rng.integers(0, 10, n)
        w = np.where(np.arange(n) % 2, rng.uniform(1, 6, n), 1).astype(np.float32)
        requests.append((x, t, label, w))
    joined = [np.concatenate(arrays) for arrays in zip(*requests, strict=True)]
    assert len(joined[0]) == len(joined[3]) == 13
    inputs = {"sample": joined[0], "timestep": joined[1][:, None], "class_label": joined[2][:, None]}
    ((answer),) = server.infer(name, inputs | {"guidance": joined[3][:, None]})
    assert isinstance(answer, dict)
    expected = []
    for x, t, label, w in requests:  # the engine with G < B: its unguided rows apart
        plain, part = w == 1, np.empty_like(x)
        for mask, guidance in ((plain, np.zeros(0, np.float32)), (~plain, w[~plain])):
            if mask.any():
                part[mask] = engine.predict(x[mask], t[mask], label[mask], guidance)
        expected.append(part)
    apart = np.abs(answer["prediction"] - np.concatenate(expected)).max()
    assert apart < 1e-5 * np.abs(answer["prediction"]).max()


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "guidance": 2.5}, {"guidance": 1.0}])
def test_pictures_are_those_of_cfgdiff_run(served: Served, settings: dict[str, Any]) -> None:
    bundle, engine, server = served
    (answer,) = server.infer(bundle.name, rows(5, **settings))
    assert np.abs(drawn(answer) - local(bundle, engine, 5, **settings)).max() <= 1


def test_a_seed_of_64_bits_and_an_index_draw_that_picture(served: Served) -> None:
    bundle, engine, server = served
    seed = 2**64 - 1
    (answer,) = server.infer(bundle.name, rows(2, seed=seed, index=[2**63 + 1, 0], guidance=[2, 4]))
    settings = {"seed": seed, "indices": [2**63 + 1, 0], "guidance": [2.0, 4.0]}
    ((_, expected),) = generate(engine, bundle, [0, 1], **settings)
    assert np.abs(drawn(answer) - expected.astype(int)).max() <= 1


def test_rows_do_not_depend_on_their_place_and_the_number_is_0_without_one(turbo: Server) -> None:
    first = rows(3, class_label=[1, 2, 3], seed=[7, 8, 9])
    del first["index"]
    turned = {name: array[::-1].copy() for name, array in first.items()}
    a, b, c = turbo.infer("cifar10-turbo", first, turned, rows(1, class_label=2, seed=8, index=0))
    assert np.abs(drawn(a) - drawn(b)[::-1]).max() <= 1 and np.abs(drawn(a)[1:2] - drawn(c)).max() <= 1


def test_requests_take_their_steps_together(turbo: Server) -> None:
    """Requests of 1, 2 and 4 steps: four calls, of fewer rows each time."""
    bundle = load_bundle("cifar10-turbo")
    answers = turbo.infer("cifar10-turbo", rows(2, steps=4), rows(3, steps=1), rows(1), rows(2, steps=4, guidance=1.5))
    assert [shapes["sample"][0] for _, shapes in turbo.calls] == [8, 5, 4, 4]
    assert all(name == "cifar10-turbo_network" for name, _ in turbo.calls)
    engine = open_engine(bundle, "cpu", "float32", threads=1)
    asked: list[dict[str, Any]] = [{"steps": 4}, {"steps": 1}, {}, {"steps": 4, "guidance": 1.5}]
    for answer, n, settings in zip(answers, (2, 3, 1, 2), asked, strict=True):
        assert np.abs(drawn(answer) - local(bundle, engine, n, **settings)).max() <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_label": [0, 10]}, r"class_label: expected 0 \.\. 9 \(airplane, .*, truck\), found 10"),
        ({"class_label": -1}, r"class_label: expected 0 \.\. 9 .*, found -1"),
        ({"steps": 5}, "steps: cifar10-turbo was trained for its own steps, 1, 2, 3, 4 in number"),
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"steps": [2, 4]}, "steps: expected the same number for all pictures of a request, found 2 and 4"),
        ({"steps": 1001}, "steps: expected at most 1000, as config.pbtxt allows, found 1001"),
        ({"guidance": [2, 9]}, "guidance: cifar10-turbo was trained for 1 .. 8, found 9"),
        ({"guidance": np.nan}, "guidance: "),
    ],
)
def test_a_wrong_request_is_one_line_and_does_not_hold_up_others(
    turbo: Server, more: dict[str, object], message: str
) -> None:
    before, wrong, after = turbo.infer("cifar10-turbo", rows(1), rows(2, **more), rows(1))
    assert isinstance(wrong, TritonError) and wrong.code() == TritonError.INVALID_ARG
    assert re.match(message, wrong.message()), wrong.message()
    assert np.array_equal(drawn(before), drawn(after))


def test_no_rows_are_an_error(turbo: Server) -> None:
    (answer,) = turbo.infer("cifar10-turbo", rows(0))
    assert isinstance(answer, TritonError) and "expected a row for each picture" in answer.message()


def test_a_cancelled_request_leaves_the_next_call(turbo: Server) -> None:
    stopped, kept = turbo.infer("cifar10-turbo", Incoming(rows(2, steps=4), cancelled_after=2), rows(1, steps=4))
    assert isinstance(stopped, TritonError) and stopped.code() == TritonError.CANCELLED
    assert drawn(kept).shape == (1, 32, 32, 3)
    assert [shapes["sample"][0] for _, shapes in turbo.calls] == [3, 3, 1, 1]


def test_a_network_that_fails_is_an_error_of_the_requests(turbo: Server) -> None:
    turbo.fail = "CUDA failure 2:\nout of memory"
    answers = turbo.infer("cifar10-turbo", rows(1), rows(2))
    assert [isinstance(answer, TritonError) and answer.code() for answer in answers] == [TritonError.INTERNAL] * 2
    assert isinstance(answers[0], TritonError)
    assert answers[0].message() == "cifar10-turbo_network: CUDA failure 2: out of memory"


def test_the_stand_in_refuses_what_triton_refuses(turbo: Server) -> None:
    for wrong, message in (
        ({"seed": rows(1)["seed"].astype(np.int32)}, "data-type"),
        ({"steps": np.full(1, 2, np.int32)}, "unexpected shape"),
        ({"prompt": rows(1)["seed"]}, "unexpected inference input"),
        (rows(257), "batch-size must be <= 256"),
        ({"seed": rows(2)["seed"]}, "batch size does not match"),
    ):
        with pytest.raises(Refused, match=message):
            turbo.infer("cifar10-turbo", rows(1) | wrong)


def test_guidance_is_the_number_that_was_written(packaged: Bundle, edited: Callable[..., Path], tmp_path: Path) -> None:
    """1.6 arrives as a float32, which is not 1.6 in float64; steps fitted for 1.6 are for it all the same."""

    def fit(tree: dict[str, Any]) -> None:
        tree["fitted"]["2"]["guidance"] = 1.6

    bundle = load_bundle(edited(fit))
    write_repository(bundle, tmp_path / "models")
    (answer,) = Server(tmp_path / "models").infer(bundle.name, rows(2, steps=2, guidance=1.6))
    engine = open_engine(bundle, "cpu", "float32", threads=1)
    fitted, plain = (local(bundle, engine, 2, steps=2, guidance=w) for w in (1.6, float(np.float32(1.6))))
    assert np.abs(fitted - plain).max() > 1
    assert np.abs(drawn(answer) - fitted).max() <= 1


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
