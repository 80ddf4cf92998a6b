"""What engines have in common."""

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine, Failure, open_engine
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.noise import normals


class Doubling(WrappedEngine):
    """Doubles the answers."""

    def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return 2 * super().predict(*inputs)


def test_a_wrapper_passes_everything_on_but_what_it_overrides(packaged: Bundle, engine: Engine) -> None:
    inner = open_engine(packaged, "cpu", threads=1)
    inputs = (normals(0, np.arange(2), 0, packaged.image_shape), np.full(2, 500, np.float32), np.array([3, 5]),
              np.ones(1, np.float32))  # fmt: skip
    with Doubling(inner) as doubling, WrappedEngine(inner) as plain:
        assert (plain.name, plain.precision, plain.max_batch) == (inner.name, "float32", inner.max_batch)
        assert (plain.predict(*inputs) == inner.predict(*inputs)).all()
        assert (doubling.predict(*inputs) == 2 * inner.predict(*inputs)).all()
    with pytest.raises(Failure, match="cpu: the engine is closed; open it again"):
        inner.predict(*inputs)
