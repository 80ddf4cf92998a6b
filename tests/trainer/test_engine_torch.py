"""The two passes of the PyTorch engine against guidance written out row by row."""

import numpy as np
import pytest
import torch

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.engine_torch import TorchEngine


def test_guided_rows_are_interpolated_from_the_unconditional_answer() -> None:
    def predict(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x * (label + 1)[:, None, None, None] + t[:, None, None, None]

    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((4, 3, 2, 2), np.float32), rng.uniform(1, 1000, 4).astype(np.float32)
    label, w = np.array([0, 1, 2, 1]), np.array([2.0, 0.5], np.float32)
    found = TorchEngine(predict, null_class=3).predict(x, t, label, w)
    for row, weight in enumerate([2.0, 0.5, 1.0, 1.0]):
        cond, uncond = x[row] * (label[row] + 1) + t[row], x[row] * 4 + t[row]
        np.testing.assert_allclose(found[row], uncond + weight * (cond - uncond), rtol=1e-5, atol=1e-3)


def test_it_is_closed_at_the_end_of_with_and_says_so() -> None:
    given = np.zeros((1, 3, 2, 2), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros(0, np.float32)
    with TorchEngine(lambda x, t, label: x + 1, null_class=3) as engine:
        assert (engine.predict(*given) == 1).all()
    with pytest.raises(Failure, match=r"^pytorch: the engine is closed; open it again$"):
        engine.predict(*given)
