"""Bundles, checkpoints, notes, pickles, arrays and command lines that nobody means: an answer or a one-line error.

`--fuzz-n 20000` runs more cases than the 500 of each kind in every run, `--fuzz-from 1234 --fuzz-n 1` that case again.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cfgdiff.runtime import Bundle, generate, load_bundle, open_engine
from cfgdiff.runtime.errors import BadInput, Failure

Judge = Callable[[str, Callable[[Any], object]], Any]


def test_bundles(judged: Judge, small_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_bundle.path, tmp_path / "bundle"))
    tree, graph = json.loads((folder / "bundle.json").read_bytes()), (folder / "model.onnx").read_bytes()
    tree["variants"] = {"float32": tree["variants"]["float32"]}
    steps = {
        "timesteps": [996.0, 644.0, 0.0],
        "coefficients": [[0.8, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
        "guidance": None,
    }
    few = {"guidance_input": [1.0, 8.0], "few_steps": True, "fitted": {"2": steps}}
    few["defaults"] = tree["defaults"] | {"steps": 2, "guidance": 3.0, "interval": None}

    def draw(mutator: Any) -> None:
        changed = graph
        if mutator.below(5) == 0:  # a graph that is not what it was, with the right hash
            changed, described = mutator.data(graph), json.loads(json.dumps(tree))
            described["variants"]["float32"]["files"]["model.onnx"] = hashlib.sha256(changed).hexdigest()
            text = json.dumps(described).encode()
        else:
            text = mutator.text(tree | few if mutator.below(2) else tree)
        (folder / "model.onnx").write_bytes(changed)
        (folder / "bundle.json").write_bytes(text)
        bundle = load_bundle(folder)
        engine = open_engine(bundle, "cpu", "float32", threads=1)
        for _, pictures in generate(engine, bundle, [0], steps=2):
            assert pictures.dtype == np.uint8 and pictures.ndim == 4
        engine.close()

    judged("bundles", draw)


def test_checkpoints(judged: Judge, model: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from safetensors.torch import save

    from cfgdiff.trainer.checkpoint import FORMAT
    from cfgdiff.trainer.weights import load_model

    weights = {f"ema.{name}": value for name, value in model.network.state_dict().items()}
    state = {
        "format": FORMAT, "config": model.config.model_dump(mode="json"), "class_names": model.class_names,
        "image_shape": list(model.image_shape),
        "data_set": "none", "command": "cfgdiff train", "step": 1, "pictures_seen": 8, "hours": 0.1, "test_loss": None,
        "initialised_from": None,         "decaying": False, "scaler": {},
    }  # fmt: skip
    whole = save(weights)

    def load(mutator: Any) -> None:
        text, data = json.dumps(state).encode(), whole
        kind = mutator.below(4)
        if kind == 0:
            data = mutator.data(whole)
        elif kind == 1:
            name = mutator.choice(sorted(weights))
            array = mutator.array(weights[name].numpy())
            changed = (
                {}
                if array.dtype.kind in "US"
                else {name: torch.from_numpy(np.array(array).astype(array.dtype.newbyteorder("=")))}
            )
            others = {key: value for key, value in weights.items() if key != name}
            data = save({key: value.contiguous() for key, value in (others | changed).items()})
        else:
            text = mutator.text(state)
        (tmp_path / "state.json").write_bytes(text)
        (tmp_path / "tensors.safetensors").write_bytes(data)
        network = load_model(tmp_path).network
        with torch.no_grad():
            answer = network(
                torch.zeros(1, *model.image_shape), torch.full((1,), 500.0), torch.zeros(1, dtype=torch.int64)
            )
        assert answer.shape == (1, *model.image_shape) and all(torch.isfinite(p).all() for p in network.parameters())

    judged("checkpoints", load)


def test_notes(judged: Judge, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfgdiff.cli.run import main

    words = f"--model {small_bundle.path} --class a --n 2 --steps 2 --engine cpu --precision float32 --threads 1"
    words += f" --guidance-interval 0.2,9 --out {tmp_path / 'made'}"
    main(words.split(), standalone_mode=False)
    with Image.open(tmp_path / "made" / "0001.png") as image:
        note, pixels = json.loads(image.text["cfgdiff"]), image.copy()

    def remake(mutator: Any) -> None:
        info = PngImagePlugin.PngInfo()
        text = mutator.text(note).decode("latin1").replace("\0", "?")
        info.add_text(
            "cfgdiff", mutator.choice(["5", "null", "NaN", "[]", '"a"']) if mutator.below(20) == 0 else text[:200_000]
        )
        pixels.save(tmp_path / "hostile.png", pnginfo=info)
        if mutator.below(10) == 0:
            (tmp_path / "hostile.png").write_bytes(mutator.data((tmp_path / "hostile.png").read_bytes()))
        _command(
            main,
            [
                "--model",
                str(small_bundle.path),
                "--remake",
                str(tmp_path / "hostile.png"),
                "--threads",
                "1",
                "--out",
                str(tmp_path / "again.png"),
            ],
        )

    judged("notes", remake)


def test_pickles(judged: Judge, write_cifar: Callable[..., Any], tmp_path: Path) -> None:
    from cfgdiff.trainer.readers import cifar10

    write_cifar(tmp_path)
    root = tmp_path / "cifar-10-batches-py"
    kept = {file.name: file.read_bytes() for file in root.iterdir()}

    def read(mutator: Any) -> None:
        name = mutator.choice(sorted(kept))
        tree = pickle.loads(kept[name])
        kind = mutator.below(4)
        if kind == 0:
            data = mutator.data(kept[name])
        elif kind == 1 and b"data" in tree:
            data = pickle.dumps(tree | {b"data": mutator.array(tree[b"data"])}, protocol=2)
        elif kind == 2:
            key = mutator.choice(sorted(tree))
            hostile = [
                None,
                5,
                b"x",
                [],
                [None],
                [10**30],
                {},
                [b"a"] * 3,
                [1.5] * 6,
                [-1] * 6,
                [99] * 6,
                ["a"] * 10,
                np.array(3),
                [[1], [2, 3]],
            ]
            data = pickle.dumps(
                {k: v for k, v in tree.items() if k != key} | {key: mutator.choice(hostile)}, protocol=2
            )
        else:
            data = pickle.dumps(
                mutator.choice([[], None, 5, list(tree), {"data": 1}, os.getcwd, b"", {b"data": {}}]), protocol=2
            )
        (root / name).write_bytes(data)
        try:
            found = cifar10(tmp_path, 32)
            assert (
                found.pictures.dtype == np.uint8
                and found.pictures.shape[1:] == (3, 32, 32)
                and found.pictures.shape[0] == len(found.labels)
            )
            assert found.labels.min() >= 0 and found.labels.max() < len(found.class_names)
        finally:
            (root / name).write_bytes(kept[name])

    judged("pickles", read)


def test_arrays(judged: Judge, tmp_path: Path) -> None:
    from cfgdiff.trainer.readers import npz

    rng = np.random.default_rng(0)
    arrays = {
        "pictures": rng.integers(0, 256, (40, 16, 16, 3), np.uint8),
        "labels": np.arange(40) % 2,
        "class_names": np.array(["a", "b"]),
    }
    file = tmp_path / "arrays.npz"

    def read(mutator: Any) -> None:
        kind = mutator.below(3)
        name = mutator.choice(sorted(arrays))
        np.savez_compressed(file, **(arrays | ({name: mutator.array(arrays[name])} if kind else {})))
        if kind < 2:
            file.write_bytes(mutator.data(file.read_bytes()))
        found = npz(file, 16)
        assert (
            found.pictures.dtype == np.uint8
            and found.pictures.shape[1:] == (3, 16, 16)
            and len(found.pictures) == len(found.labels)
        )
        assert found.labels.min() >= 0 and found.labels.max() < len(found.class_names)

    judged("arrays", read)


FLAGS = (
    "class n steps sampler spacing timesteps eta guidance guidance-interval guidance-rescale threshold seed "
    "interpolate frames from strength mask batch out format resume remake stream model engine precision uncertified "
    "threads json list-classes verbose"
)
PLAIN = (
    "0 1 2 3 -1 1.5 nan inf 1e400 a b all a,b a,nope , 0.1,5 5,0.1 1:2 1:2:3 --n /nowhere/x x.png x.gif x.npz x.tar "
    "x.zip x.jpg . ddim DDIM heun fitted karras 999,500 500,999"
)
WORDS = ["", " ", "a\nb", "\udcff", str(2**63), str(2**64), *PLAIN.split()]
SWITCHES = {"--resume", "--stream", "--uncertified", "--json", "--list-classes", "--verbose"}


def test_command_lines(judged: Judge, small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfgdiff.cli.run import main

    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(picture)

    def run(mutator: Any) -> None:
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        words = f"--model {small_bundle.path} --engine cpu --threads 1 --steps 2 --class a --n 2".split()
        for _ in range(1 + mutator.below(3)):
            flag = f"--{mutator.choice(FLAGS.split())}"
            words += [flag] if flag in SWITCHES else [flag, mutator.choice([*WORDS, str(picture)])]
        _command(main, words)
        left = [path for path in (tmp_path / "here").rglob("*") if "partial" in path.name]
        assert not left, f"left behind: {left[0].name}"

    judged("command lines", run)


def _command(main: Callable[..., None], words: list[str]) -> None:
    """Run a command in this process. Exit codes 1 and 2 are `Failure` and `BadInput`."""
    try:
        main(words)
    except SystemExit as end:
        if end.code not in (0, None):
            assert end.code in (1, 2), f"exit code {end.code}"
            raise (BadInput if end.code == 2 else Failure)(
                " ".join(words).replace("\n", " ").encode(errors="replace").decode()
            ) from None
