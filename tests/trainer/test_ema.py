"""The average against the sum it stands for."""

import pytest
import torch

from cfgdiff.trainer.ema import EMA


def test_the_average_is_the_recursion_of_its_definition() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema, expected = EMA(network, 0.5), 0.0
    for step in range(20):
        network.weight.data.fill_(step + 1.0)
        ema.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert not ema.network.weight.requires_grad
