"""The work of a graph against PyTorch's own count, the matrix product against NumPy's."""

import platform

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import machine
from cfgdiff.benchmarks.machine import describe, kinds, limit_of, matrix_product, operations, peak
from cfgdiff.runtime import Bundle


@pytest.mark.parametrize(("b", "g"), [(1, 0), (5, 3), (8, 8)])
def test_operations_are_those_that_pytorch_counts(small_bundle: Bundle, model: object, b: int, g: int) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from torch.utils.flop_counter import FlopCounterMode

    n = b + g
    with FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(n, 3, 16, 16), torch.ones(n), torch.zeros(n, dtype=torch.int64))  # type: ignore[attr-defined]
    assert operations(small_bundle.path / "model.onnx", b, g) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", ["float32", "int8", "bfloat16"])
def test_the_product_is_numpys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDES", (64,))
    if kind == "bfloat16":
        torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
        torch.manual_seed(0)
        a, b = (torch.randint(0, 100, (64, 64)).numpy() for _ in range(2))
        torch.manual_seed(0)
    else:
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 100, (64, 64)), rng.integers(0, 100, (64, 64))
    np.testing.assert_allclose(matrix_product(kind, 1, 64)(), a @ b, rtol=0.005 if kind == "bfloat16" else 0)
    assert peak(kind, 1, rounds=2) > 0


def test_a_precision_is_held_against_its_own_product_where_there_is_one() -> None:
    assert set(machine.TYPES) <= set(kinds()) <= {*machine.TYPES, "bfloat16"}
    peaks = {"float32": 1.0, "int8": 2.0}
    assert [limit_of(name, peaks) for name in ("float32", "float16", "int8", "bfloat16")] == [1.0, 1.0, 2.0, None]
    assert limit_of("bfloat16", peaks | {"bfloat16": 3.0}) == 3.0


def test_the_machine_is_described_without_its_name() -> None:
    told = describe()
    assert told["cores"] >= 1 and told["processor"] and platform.node() not in map(str, told.values())
