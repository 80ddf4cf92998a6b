"""The work of a graph against PyTorch's own count, the matrix product against NumPy's."""

import platform

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks import machine
from cfgdiff.benchmarks.machine import describe, matrix_product, operations, peak
from cfgdiff.runtime import Bundle


@pytest.mark.parametrize(("b", "g"), [(1, 0), (5, 3), (8, 8)])
def test_operations_are_those_that_pytorch_counts(small_bundle: Bundle, model: object, b: int, g: int) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from torch.utils.flop_counter import FlopCounterMode

    n = b + g
    with FlopCounterMode(display=False) as counter:
        model.network(torch.zeros(n, 3, 16, 16), torch.ones(n), torch.zeros(n, dtype=torch.int64))  # type: ignore[attr-defined]
    assert operations(small_bundle.path / "model.onnx", b, g) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_product_is_numpys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIDES", (64,))
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 100, (64, 64)), rng.integers(0, 100, (64, 64))
    np.testing.assert_array_equal(matrix_product(kind, 1, 64)(), a @ b)
    assert peak(kind, 1, rounds=2) > 0


def test_the_machine_is_described_without_its_name() -> None:
    told = describe()
    assert told["cores"] >= 1 and told["processor"] and platform.node() not in map(str, told.values())
