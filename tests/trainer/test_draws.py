"""A picture's random numbers do not depend on how its batch is cut; their distributions are as described."""

import torch

from cfgdiff.trainer.draws import Draws


def taken(draws: Draws) -> list[torch.Tensor]:
    return [draws.uniform(), draws.quantiles(), draws.normal((3, 4, 4)), draws.uniform()]


def test_parts_of_a_batch_are_the_batch() -> None:
    whole = taken(Draws(7, 30, 12))
    parts = [taken(Draws(7, 30, 12, first, count)) for first, count in ((0, 3), (3, 3), (6, 6))]
    for i, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), expected)
    assert not torch.equal(whole[0], whole[3])


def test_seed_step_and_row_all_matter() -> None:
    base = Draws(7, 30, 12).normal((2,))
    assert len(base.unique()) == 24
    for other in (Draws(8, 30, 12), Draws(7, 31, 12)):
        assert not (other.normal((2,)) == base).any()


def test_normals_are_normal_and_quantiles_are_stratified() -> None:
    normals = Draws(0, 0, 200).normal((1000,))
    assert abs(normals.mean().item()) < 0.01 and abs(normals.std().item() - 1) < 0.01
    correlation = torch.corrcoef(normals) - torch.eye(200)
    assert correlation.abs().max() < 6 / 1000**0.5
    assert torch.equal((Draws(0, 0, 50).quantiles() * 50).floor(), torch.arange(50, dtype=torch.float64))


def test_a_device_of_its_own_draws_the_same_for_parts_of_a_batch() -> None:
    """As a GPU does, for which the CPU by its number stands in."""
    whole = Draws(7, 30, 12, device="cpu:0").normal((2, 3))
    parts = [Draws(7, 30, 12, first, count, "cpu:0").normal((2, 3)) for first, count in ((0, 3), (3, 3), (6, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(Draws(7, 31, 12, device="cpu:0").normal((2, 3)), whole)
    assert abs(Draws(0, 0, 500, device="cpu:0").normal((100,)).std().item() - 1) < 0.02
