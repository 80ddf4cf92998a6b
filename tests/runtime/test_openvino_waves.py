"""The two parts of a graph compute what the whole does, and in bfloat16 any timestep is as exact as a round one."""

from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import load_bundle, open_engine
from cfgdiff.runtime.engine_openvino import _only, import_openvino
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.openvino_waves import split


@pytest.fixture(scope="module")
def openvino() -> Any:
    try:
        return import_openvino()
    except Failure as error:
        pytest.skip(f"needs OpenVINO: {error}")


def values(b: int, g: int, t: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((b, 3, 32, 32), np.float32), "timestep": np.full(b, t, np.float32),
        "class_label": np.arange(b) % 10, "guidance": np.linspace(1, 4, g, dtype=np.float32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "waves_read", "rest_reads"),
    [
        ("cifar10-turbo", {"timestep", "guidance"}, {"sample", "class_label"}),
        ("cifar10-small", {"timestep", "guidance"}, {"sample", "class_label", "guidance"}),
    ],
)
def test_both_parts_together_are_the_graph(
    openvino: Any, name: str, waves_read: set[str], rest_reads: set[str]
) -> None:
    core, bundle, given = _only(openvino.Core), load_bundle(name), values(4, 4, 987.3)
    model = core.read_model(str(bundle.path / bundle.variant("float32").graph))
    model.reshape({key: list(value.shape) for key, value in given.items()})
    expected = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given)["prediction"]
    waves, rest = split(openvino, model)
    made = {output.any_name for output in waves.outputs}
    assert {port.any_name for port in waves.inputs} == waves_read
    assert {port.any_name for port in rest.inputs} == rest_reads | made
    first, second = (core.compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for part in (waves, rest))
    between = {key.any_name: value for key, value in first({key: given[key] for key in waves_read}).items()}
    found = second({key: given[key] for key in rest_reads} | between)["prediction"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_graph_without_products_stays_whole(openvino: Any) -> None:
    op = openvino.op
    inputs = [op.Parameter(openvino.Type.f32, openvino.Shape([2])) for _ in range(3)]
    for parameter, name in zip(inputs, ("sample", "timestep", "guidance"), strict=True):
        parameter.set_friendly_name(name)
    import openvino.opset8 as ops

    model = openvino.Model([ops.add(ops.add(inputs[0], inputs[1]), inputs[2])], inputs)
    assert split(openvino, model) == (None, model)


@pytest.mark.parametrize("t", [1000.0, 987.3, 813.7])
def test_bfloat16_does_not_round_timesteps(openvino: Any, t: float) -> None:
    if "BF16" not in _only(openvino.Core).get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bfloat16 (AVX512_BF16, AMX)")
    bundle, given = load_bundle("cifar10-turbo"), values(8, 8, t)
    with open_engine(bundle, "openvino", "bfloat16") as low, open_engine(bundle, "cpu", "float32") as exact:
        found, expected = low.predict(**given), exact.predict(**given)
    assert np.linalg.norm(found - expected) < 0.015 * np.linalg.norm(expected)  # 0.05 .. 0.1 with a rounded t
