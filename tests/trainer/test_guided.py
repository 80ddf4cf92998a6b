import torch
from torch import nn

from cfgdiff.trainer.config import NetworkConfig
from cfgdiff.trainer.guided import WAVES, GuidedUNet, guidance_embedding
from cfgdiff.trainer.unet import UNet

SMALL = NetworkConfig(norm="affine", channels=8, multipliers=(1,), blocks=1, attention=(), patch=2)


def drawn(network: nn.Module) -> None:
    """Draw all weights: layers that start at zero would hide what stands before them."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1


def test_a_guided_network_is_the_one_without_w_until_it_learns_w() -> None:
    network, plain = GuidedUNet(SMALL, (3, 8, 8), 2), UNet(SMALL, (3, 8, 8), 2)
    drawn(network)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("strength.")}
    plain.load_state_dict(weights)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t, label, w = (
        torch.tensor([30.0, 300.0, 600.0, 990.0]),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([4.0, 2.0, 8, 1.5]),
    )
    expected = plain(x, t, label)
    assert not torch.allclose(network(x, t, label, w), expected)
    network.forget_guidance()
    torch.testing.assert_close(network(x, t, label, w), expected)


def test_without_w_it_is_1() -> None:
    network = GuidedUNet(SMALL, (3, 8, 8), 2)
    drawn(network)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t, label = torch.tensor([30.0, 600.0]), torch.tensor([0, 1])
    assert torch.equal(network(x, t, label), network(x, t, label, torch.ones(2)))
    assert not torch.allclose(network(x, t, label), network(x, t, label, torch.full((2,), 3.0)))


def test_the_embedding_tells_every_w_apart() -> None:
    w = torch.linspace(1, 8, 60)
    waves = guidance_embedding(w)
    distances = torch.cdist(waves, waves) + torch.eye(60) * 9
    assert waves.shape == (60, 2 * WAVES)
    assert not guidance_embedding(torch.ones(1)).any()
    assert distances.min() > 0.1
