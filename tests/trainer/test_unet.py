"""Shapes, parts and conditioning of the U-Net."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cfgdiff.trainer.config import NetworkConfig, load_preset, make_config
from cfgdiff.trainer.unet import Attention, ResidualBlock, UNet, timestep_embedding


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network with its zero-initialised branches awake."""
    torch.manual_seed(1)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network.eval()


@pytest.mark.parametrize("norm", ["group", "affine"])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_answer_has_the_shape_of_the_picture(patch: int, norm: str) -> None:
    config = NetworkConfig(channels=16, multipliers=(1, 2), attention=(8, 4), head_channels=16, patch=patch, norm=norm)
    network = UNet(config, (3, 16, 16), 3)
    x = torch.randn(2, 3, 16, 16)
    assert network(x, torch.tensor([1.0, 999.5]), torch.tensor([0, 3])).shape == x.shape


def test_going_up_narrow_answers_alike_for_less_work() -> None:
    flops = {}
    for narrow in (False, True):
        config = NetworkConfig(channels=16, multipliers=(1, 2, 3), attention=(), head_channels=16, narrow_up=narrow)
        network, x = randomised(UNet(config, (3, 16, 16), 3)), torch.randn(2, 3, 16, 16)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answer = network(x, torch.tensor([1.0, 999.5]), torch.tensor([0, 3]))
        flops[narrow] = counter.get_total_flops()
        assert answer.shape == x.shape
        ups = [m for m in network.modules() if isinstance(m, ResidualBlock) and m.resample == "up"]
        widths = [(m.conv_in.in_channels, m.conv_in.out_channels) for m in ups]
        assert widths == ([(48, 32), (32, 16)] if narrow else [(48, 48), (32, 32)])
    assert flops[True] < 0.75 * flops[False]


def test_time_and_class_both_change_the_answer_and_rows_do_not_mix(tiny_network: torch.nn.Module) -> None:
    network = randomised(tiny_network)
    x, t, label = (
        torch.randn(1, 3, 16, 16).expand(4, -1, -1, -1),
        torch.tensor([5.0, 5.0, 500.0, 5.0]),
        torch.tensor([0, 1, 0, 3]),
    )
    with torch.no_grad():
        together = network(x, t, label)
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert all((together[0] - together[i]).abs().max() > 1e-3 for i in (1, 2, 3))


def test_the_packaged_preset_has_the_parts_of_adm() -> None:
    config = make_config(load_preset("cifar10-small"))
    network = UNet(config.network, (3, 32, 32), 10)
    attentions = [m for m in network.modules() if isinstance(m, Attention)]
    resamples = [m.resample for m in network.modules() if isinstance(m, ResidualBlock)]
    assert attentions and all(m.qkv.in_channels == config.network.head_channels * m.heads for m in attentions)
    assert resamples.count("down") == resamples.count("up") == 2
    assert network.label.num_embeddings == 11
    assert sum(p.numel() for p in network.parameters()) < 7.5e6  # under 15 MB in float16


@pytest.mark.parametrize(
    ("norm", "share"), [("group", 30), ("affine", 300)]
)  # Muon takes the directions of gradients, not their sizes
def test_the_deepest_blocks_get_their_share_of_the_first_gradients(norm: str, share: float) -> None:
    torch.manual_seed(0)
    network = UNet(make_config(load_preset("cifar10-small"), (f"network.norm={norm}",)).network, (3, 32, 32), 10)
    torch.nn.init.normal_(network.head.weight, std=0.05)  # it starts at zero, and so would every gradient behind it
    x, eps = torch.randn(16, 3, 32, 32), torch.randn(16, 3, 32, 32)
    torch.nn.functional.mse_loss(
        network(x, torch.full((16,), 500.0), torch.zeros(16, dtype=torch.int64)), eps
    ).backward()
    gradients = {name: p.grad.norm() for name, p in network.named_parameters() if name.endswith("conv_out.weight")}
    assert min(gradients.values()) > max(gradients.values()) / share


def test_without_normalisation_convolutions_start_with_the_variance_of_their_input() -> None:
    torch.manual_seed(0)
    network = UNet(NetworkConfig(channels=64, multipliers=(1,), blocks=3, attention=(), norm="affine"), (3, 16, 16), 10)
    assert not [name for name, _ in network.named_parameters() if "norm" in name]
    torch.nn.init.normal_(network.stem.weight, std=network.stem.weight[0].numel() ** -0.5)
    blocks, deviations = [m for m in network.modules() if isinstance(m, ResidualBlock)], list[float]()
    for block in blocks:
        block.conv_in.register_forward_hook(lambda _, __, output: deviations.append(output.std().item()))
    with torch.no_grad():
        network(torch.randn(8, 3, 16, 16), torch.full((8,), 500.0), torch.zeros(8, dtype=torch.int64))
    assert len(deviations) == len(blocks) == 9 and all(0.8 < d < 1.2 for d in deviations)


def test_without_normalisation_a_channel_is_scaled_and_shifted_by_the_embedding_alone() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(16, 16, 8, NetworkConfig(norm="affine")).eval()
    torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(block.conv_out.weight)
    x, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    scale, shift = (embedding @ block.modulation.weight.T)[..., None, None].chunk(2, dim=1)
    h = block.conv_in(x * x.sigmoid()) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embedding), x + block.conv_out(h * h.sigmoid()))


def test_timestep_embedding_is_cosines_and_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 2.0]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert embedding[1, 0].item() == pytest.approx(torch.cos(torch.tensor(2.0)).item())
