"""The fold against guidance written as two passes."""

import pytest
import torch

from cfgdiff.export.fold import GuidedNetwork
from cfgdiff.export.parity import CASES, example
from cfgdiff.trainer.weights import LoadedModel


@pytest.mark.parametrize(("b", "g"), CASES)
def test_the_fold_is_two_passes_interpolated(model: LoadedModel, b: int, g: int) -> None:
    inputs = {name: torch.from_numpy(value) for name, value in example(b, g, model.image_shape, 3).items()}
    x, t, label, w = inputs.values()
    cond, uncond = model.network(x, t, label), model.network(x, t, torch.full((b,), 3))
    weight = torch.ones(b)
    weight[:g] = w
    expected = uncond + weight[:, None, None, None] * (cond - uncond)
    torch.testing.assert_close(GuidedNetwork(model.network, 3)(**inputs), expected, atol=1e-4, rtol=1e-4)
