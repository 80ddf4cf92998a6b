"""Muon's orthogonalisation against an exact polar factor; the rate's schedule against its description."""

import pytest
import torch

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer import registry
from cfgdiff.trainer.config import OptimiserConfig
from cfgdiff.trainer.optim import fast_bfloat16, make_optimisers, orthogonalise, rate_factor


@pytest.mark.parametrize(
    ("found", "expected"), [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True), ({}, False)]
)
def test_bfloat16_is_taken_where_the_processor_computes_in_it(
    found: dict, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert fast_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_orthogonalise_is_close_to_the_polar_factor(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    polar, found = u @ vt, orthogonalise(matrices).float()
    cosine = (polar * found).sum(dim=(1, 2)) / polar.norm(dim=(1, 2)) / found.norm(dim=(1, 2))
    assert cosine.min() > 0.95
    assert torch.linalg.svdvals(found).max() < 1.3


def test_orthogonalise_equals_the_plain_newton_schulz_iteration() -> None:
    matrices = (
        torch.randn(2, 16, 90, generator=torch.Generator().manual_seed(2)).double()
        @ torch.logspace(0, -4, 90).double().diag()
    )
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise(matrices.float()).double(), x, rtol=0, atol=1e-4)


def test_muon_takes_inner_convolutions_and_adamw_the_rest(tiny_network: torch.nn.Module) -> None:
    adamw, muon = make_optimisers(tiny_network, OptimiserConfig(name="muon"))
    inner = {id(p) for p in muon.param_groups[0]["params"]}
    rest = {id(p) for p in adamw.param_groups[0]["params"]}
    assert inner | rest == {id(p) for p in tiny_network.parameters()} and not inner & rest
    assert id(tiny_network.stem.weight) in rest and id(tiny_network.head.weight) in rest
    assert id(tiny_network.middle[0].attention.qkv.weight) in inner


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_adamw_gets_its_settings(tiny_network: torch.nn.Module, name: str) -> None:
    group = make_optimisers(tiny_network, OptimiserConfig(name=name, lr=0.004, beta2=0.99, weight_decay=0.1))[
        0
    ].param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.004, (0.9, 0.99), 0.1)


def test_an_optimiser_must_hold_every_parameter_once(
    tiny_network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(network: torch.nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
        """SGD for the first half."""
        return [torch.optim.SGD(list(network.parameters())[::2], lr=0.1)]

    monkeypatch.setattr(registry, "_added", {("optimiser", "half"): registry.Part("optimiser", "half", "here", half)})
    with pytest.raises(
        Failure, match=r"optimiser 'half': must hold each of the \d+ parameters once, holds \d+ in \d+ places"
    ):
        make_optimisers(tiny_network, OptimiserConfig(name="half"))


def test_muon_needs_convolutions() -> None:
    with pytest.raises(BadInput, match="no convolutions between stem and head"):
        make_optimisers(torch.nn.Linear(3, 3), OptimiserConfig(name="muon"))


def test_rate_warms_up_stays_and_decays() -> None:
    config = OptimiserConfig(warmup_steps=100, decay_share=0.3)
    assert rate_factor(config, 0, 0.0) == pytest.approx(0.01)
    assert rate_factor(config, 99, 0.1) == 1.0
    assert rate_factor(config, 5000, 0.7) == pytest.approx(1.0)
    assert rate_factor(config, 5000, 0.85) == pytest.approx(0.5)
    assert rate_factor(config, 5000, 1.0) == 0.0
    assert rate_factor(OptimiserConfig(warmup_steps=0, decay_share=0.0), 0, 0.99) == 1.0
