"""The graph of a super-resolution stage: its inputs, its answers on every engine, and what refuses other inputs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from stages import random_model

from cfgdiff.runtime import Bundle, load_bundle, open_engine
from cfgdiff.runtime.bundle import Condition
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.examples import example_inputs, example_low
from cfgdiff.runtime.graph_file import contradiction, read_graph
from cfgdiff.runtime.survey import try_out
from cfgdiff.trainer.engine_torch import TorchEngine


@pytest.fixture
def stage(cascade: Bundle) -> Bundle:
    """A stage from 8x8 to 16x16, in float32 and int8."""
    return cascade.stages[0]


def inputs(b: int, g: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(b)
    x, condition = (rng.standard_normal((b, 3, 16, 16)).astype(np.float32) for _ in range(2))
    t, noise = (rng.uniform(0, most, b).astype(np.float32) for most in (1000, 500))
    return x, t, rng.integers(0, 3, b), rng.uniform(0, 4, g).astype(np.float32), condition, noise


def test_the_graph_takes_two_more_inputs_and_says_so(stage: Bundle) -> None:
    graph = onnx.load(stage.path / "model.onnx")
    names = ["sample", "timestep", "class_label", "guidance", "condition", "condition_noise"]
    assert [value.name for value in graph.graph.input] == names
    assert [value.doc_string for value in graph.graph.input][4].startswith("the picture that is enlarged 2 times")
    text = {entry.key: entry.value for entry in graph.metadata_props}["sampling"]
    assert "condition = (alpha * z / 0.5 + sigma * normal noise)" in text and stage.condition == Condition(
        2, 100.0, 500.0, 1
    )
    assert json.loads((stage.path / "bundle.json").read_text())["format_version"] == 2


@pytest.mark.parametrize("name", ["cpu", "openvino"])
@pytest.mark.parametrize(("b", "g"), [(5, 3), (8, 0), (3, 3)])
def test_engines_answer_as_pytorch_does(stage: Bundle, name: str, b: int, g: int) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra: pip install 'cfgdiff[openvino]'")
    x, t, label, w, condition, noise = map(torch.from_numpy, rows := inputs(b, g))
    network = random_model(16).network
    cond = network(x, t, label, condition, noise)
    uncond = network(x, t, torch.full_like(label, 3), condition, noise)
    cond[:g] = uncond[:g] + w.reshape(-1, 1, 1, 1) * (cond[:g] - uncond[:g])
    size = float(cond.abs().max())
    with open_engine(stage, name, "float32", threads=2) as engine:
        np.testing.assert_allclose(engine.predict(*rows), cond, rtol=0, atol=2e-3 * size)  # weights are float16
        try_out(engine, stage)
    mine = TorchEngine(lambda *given: network(*given), 3).predict(*rows)
    np.testing.assert_allclose(mine, cond, rtol=0, atol=1e-5 * size)


def test_its_variants_are_certified(stage: Bundle) -> None:
    assert set(stage.variants) == {"float32", "int8"}
    for variant in stage.variants.values():
        assert variant.certificate is not None and variant.certificate.passed, variant.certificate
    assert stage.provenance["errors"]["picture_psnr_db"] > 40
    card = (stage.path / "README.md").read_text()
    assert "super-resolution stage 1: enlarges 2 times, with the noise of t = 100 by default, of at most 500" in card


def test_inputs_that_are_missing_or_wrong_are_named(stage: Bundle, engine: object, packaged: Bundle) -> None:
    rows = inputs(2, 1)
    with open_engine(stage, "cpu", "float32") as opened:
        with pytest.raises(BadInput, match=r"Expected 2 further inputs \(condition, condition_noise\), got 0"):
            opened.predict(*rows[:4])
        with pytest.raises(BadInput, match=r"Expected float32 \(2, 3, 16, 16\), got .* for input: condition$"):
            opened.predict(*rows[:4], rows[4][:, :, :8, :8], rows[5])
        with pytest.raises(BadInput, match=r"Expected float32 \(2,\), got float64 \(2,\) for input: condition_noise"):
            opened.predict(*rows[:5], rows[5].astype(np.float64))
    x = np.zeros((1, *packaged.image_shape), np.float32)
    with pytest.raises(BadInput, match="Expected no further inputs, got 1"):
        engine.predict(x, np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros(0, np.float32), x)


def test_graphs_with_and_without_a_condition_are_not_taken_for_each_other(
    stage: Bundle, packaged: Bundle, tmp_path: Path
) -> None:
    own = read_graph((stage.path / "model.onnx").read_bytes())
    assert not contradiction(own, (3, 16, 16), 3, takes_condition=True)
    assert "condition_noise; expected sample" in contradiction(own, (3, 16, 16), 3)
    plain = read_graph((packaged.path / packaged.variant("float32").graph).read_bytes())
    assert "expected sample, timestep, class_label, guidance, condition" in contradiction(
        plain, packaged.image_shape, 10, takes_condition=True
    )


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 3}, {"noise": 600.0}, {"most": 1001.0}, {"stage": 0}, {"stage": "1"}, {"factor": "2"},
        {"noise": -1.0},
    ],
)  # fmt: skip
def test_a_damaged_condition_is_named(stage: Bundle, tmp_path: Path, change: dict) -> None:
    tree = json.loads((stage.path / "bundle.json").read_text())
    tree["condition"] |= change
    (tmp_path / "bundle.json").write_text(json.dumps(tree))
    with pytest.raises(Failure, match="'condition' is missing or not as expected"):
        load_bundle(tmp_path)


def test_examples_are_pictures_of_their_own_and_depend_on_their_number_alone(stage: Bundle, packaged: Bundle) -> None:
    low = example_low(stage, 6)
    assert low is not None and low.shape == (6, 8, 8, 3) and low.dtype == np.uint8
    assert np.array_equal(low[:4], example_low(stage, 4))
    assert 30 < low.std() < 80 and len({picture.tobytes() for picture in low}) == 6
    picture, noise = example_inputs(stage, 6)
    assert picture.shape == (6, 3, 16, 16) and (noise == 100).all() and picture.dtype == noise.dtype == np.float32
    assert example_low(packaged, 3) is None and example_inputs(packaged, 3) == ()
    assert dataclasses.replace(stage, condition=None).stage == 0
