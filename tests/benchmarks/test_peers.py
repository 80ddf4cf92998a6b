"""All loops draw the same pictures: otherwise their times would say nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.peers import PEER, diffusers_loop, diffusers_loops, ours, torch_network, two_passes
from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.errors import Failure


def test_the_peers_pictures_are_ours(packaged: Bundle, engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    torch.set_num_threads(1)
    wanted = ours(engine, packaged, 4)(3).astype(int)
    assert wanted.shape == (3, 32, 32, 3)
    peers = {"two passes": two_passes(engine, packaged, 4)} | diffusers_loops(
        torch_network(packaged), packaged, 4, compiled=False
    )
    for name, peer in peers.items():
        apart = np.abs(peer(3) - wanted)
        assert 0 < apart.mean() < 3 if "bfloat16" in name else (apart > 1).mean() < 1e-3, name


def test_every_form_of_the_peer_that_may_be_its_fastest_is_there(
    packaged: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    forms = ("eager {}", "eager {}, channels_last", "compiled {}, channels_last")
    for fast in (False, True):
        monkeypatch.setattr("cfgdiff.trainer.optim.fast_bfloat16", lambda _, fast=fast: fast)
        precisions = ["float32", "bfloat16"][: 1 + fast]
        network = torch_network(packaged)
        assert list(diffusers_loops(network, packaged, 4, compiled=True)) == [
            PEER + form.format(precision) for precision in precisions for form in forms
        ]
        assert list(diffusers_loops(network, packaged, 4, compiled=False)) == [
            PEER + form.format(precision) for precision in precisions for form in forms[:2]
        ]
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in network.parameters())  # the forms are copies
    assert [next(network.parameters()).dtype for network in compiled] == [torch.float32, torch.float32, torch.bfloat16]  # type: ignore[attr-defined]
    assert all(network.stem.weight.is_contiguous(memory_format=torch.channels_last) for network in compiled)  # type: ignore[attr-defined]


def test_steps_that_do_not_divide_the_schedule_are_refused(packaged: Bundle) -> None:
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    with pytest.raises(Failure, match="only where the steps divide 1000, found 7"):
        diffusers_loop(torch_network(packaged), packaged, 7)


def test_a_bundle_that_does_not_name_its_network_needs_a_checkpoint(
    packaged: Bundle, small_bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    with pytest.raises(Failure, match="does not say which network it is; give --checkpoint RUN"):
        torch_network(small_bundle)
    with pytest.raises(Failure, match="its graph is not of cfgdiff train --preset smoke; give --checkpoint RUN"):
        torch_network(replace(packaged, provenance={"command": "cfgdiff train --preset smoke"}))
    with pytest.raises(Failure, match="absent"):
        torch_network(packaged, tmp_path / "absent")


@pytest.mark.parametrize(
    "command",
    [
        "cfgdiff train --preset cifar10-small --processes 2 --init BUNDLE --set data.options={skip_broken: true}",
        "cfgdiff train --preset=cifar10-small --set network.multipliers=[1, 1, 1] --set train.pictures=64; "
        "cfgdiff train --resume RUN",
        "cfgdiff train --preset smoke --set network.multipliers=[1, 1, 1] --set network.blocks=2 "
        "--set network.channels=64 --set network.head_channels=64 --set network.narrow_up=false; "
        "cfgdiff train --resume RUN --set train.pictures=64",
    ],
)
@pytest.mark.parametrize("norm", ["group", "affine"])
def test_the_network_is_that_of_the_command_with_the_norm_of_the_weights(
    packaged: Bundle, command: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from cfgdiff.trainer import build, config, weights

    made = config.make_config(config.load_preset("cifar10-small"), (f"network.norm={norm}",))
    own = build.make_network(made, packaged.image_shape, 10).state_dict()
    monkeypatch.setattr(weights, "initial_weights", lambda _: (own, {}))
    network = torch_network(replace(packaged, provenance={"command": command}))
    assert network.state_dict().keys() == own.keys() and not network.training
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())
