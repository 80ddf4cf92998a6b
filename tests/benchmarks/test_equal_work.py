"""diffusers' loops beside a cascade: as many multiply-adds a picture, and with its own networks its pictures."""

import math
from typing import Any

import numpy as np
import pytest
from stages import random_model

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")

from torch.utils.flop_counter import FlopCounterMode

from cfgdiff.benchmarks.equal_work import FEWEST, cascade_gmac, cascade_loop, direct, direct_loop
from cfgdiff.runtime import Bundle, Stage, draw, open_engine
from cfgdiff.runtime.errors import Failure


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine."""
    monkeypatch.setattr("cfgdiff.trainer.optim.fast_bfloat16", lambda _: False)


def counted(draw: Any, n: int) -> tuple[np.ndarray, float]:
    """n pictures, and billions of multiply-adds in each."""
    with FlopCounterMode(display=False) as counter:
        pictures = draw(n)
    return pictures, counter.get_total_flops() / 2e9 / n


def test_the_direct_network_takes_the_cascades_work(cascade: Bundle) -> None:
    found = direct(cascade, 0.02, 20)
    assert found.gmac == pytest.approx(0.02, rel=0.1) and found.evaluations >= FEWEST
    pictures, gmac = counted(direct_loop(found, 2, compiled=False)[1], 2)
    assert gmac == pytest.approx(found.gmac, rel=0.01)  # PyTorch does not count a CPU's attention
    assert pictures.shape == (2, 32, 32, 3) and pictures.dtype == np.uint8


def test_more_evaluations_make_it_narrower(cascade: Bundle) -> None:
    few, many = direct(cascade, 0.06, 5), direct(cascade, 0.06, 40)
    assert few.width > many.width and few.evaluations < many.evaluations
    assert few.gmac == pytest.approx(0.06, rel=0.1) and many.gmac == pytest.approx(0.06, rel=0.1)


def test_too_little_work_for_it_is_a_line(cascade: Bundle) -> None:
    with pytest.raises(Failure, match=r"^cascade: takes 0\.001 GMAC a picture, less than 5 evaluations of diffusers'"):
        direct(cascade, 0.001, 20)


def test_diffusers_draws_the_pictures_of_the_cascade_with_its_networks(cascade: Bundle) -> None:
    networks = [random_model(8, 1, stage=False).network, random_model(16).network, random_model(32, 4).network]
    settings = {"interval": (0, math.inf), "stages": [Stage(steps=2, guidance=1.0), Stage(steps=4)]}
    with open_engine(cascade, "cpu", "float32", threads=1) as engine:
        expected = draw(cascade, ["a", "b", "c"], engine, **settings)
    forms, loop = cascade_loop(networks, cascade, 3, compiled=False, **settings)
    pictures = loop(3).astype(int)
    assert pictures.shape == (3, 32, 32, 3) and set(forms.split("; ")) <= {
        "eager float32",
        "eager float32, channels_last",
    }
    assert (np.abs(pictures - expected) > 2).mean() < 1e-3, np.abs(pictures - expected).max()
    _, gmac = counted(cascade_loop(networks, cascade, 2, compiled=False)[1], 2)
    assert gmac == pytest.approx(cascade_gmac(cascade), rel=1e-3)
