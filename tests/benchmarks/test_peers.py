"""All loops draw the same pictures: otherwise their times would say nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.peers import diffusers_loop, ours, torch_network, two_passes
from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.errors import Failure


def test_the_peers_pictures_are_ours(packaged: Bundle, engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    torch.set_num_threads(1)
    wanted = ours(engine, packaged, 4)(3).astype(int)
    assert wanted.shape == (3, 32, 32, 3)
    for peer in (two_passes(engine, packaged, 4), diffusers_loop(torch_network(packaged), packaged, 4)):
        apart = np.abs(peer(3) - wanted)
        assert (apart > 1).mean() < 1e-3
    low = diffusers_loop(torch_network(packaged), packaged, 4, bfloat16=True)(3)
    assert 0 < np.abs(low - wanted).mean() < 3


def test_steps_that_do_not_divide_the_schedule_are_refused(packaged: Bundle) -> None:
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    with pytest.raises(Failure, match="only where the steps divide 1000, found 7"):
        diffusers_loop(torch_network(packaged), packaged, 7)


def test_a_bundle_that_does_not_name_its_network_needs_a_checkpoint(packaged: Bundle, small_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    with pytest.raises(Failure, match="does not say which network it is; give --checkpoint RUN"):
        torch_network(small_bundle)
    with pytest.raises(Failure, match=r"its graph is not of cfgdiff train --preset smoke \(.*\); give --checkpoint RUN"):
        torch_network(replace(packaged, provenance={"command": "cfgdiff train --preset smoke"}))
    with pytest.raises(Failure, match="absent"):
        torch_network(packaged, tmp_path / "absent")
    resumed = "cfgdiff train --preset cifar10-small --set train.pictures=64; cfgdiff train --resume RUN"
    assert torch_network(replace(packaged, provenance={"command": resumed}))
