from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import alexnet

from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import features
from cfgdiff.trainer.features import feature_distance


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's convolutions with drawn weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("features") / "alexnet.safetensors"
    save_file(
        {name: value for name, value in alexnet(weights=None).state_dict().items() if name.startswith("features.")},
        path,
    )
    return path


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1, torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning", "ignore:Arguments other than:UserWarning")
def test_it_is_lpips_where_all_channels_count_alike(drawn: Path, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    peer = lpips.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    peer.net.load_state_dict(_as_slices(features._alexnet(str(drawn), "cpu"), peer), strict=True)
    for layer in peer.lins:
        torch.nn.init.ones_(layer.model[1].weight)
    peer.eval()
    with torch.no_grad():
        expected = peer(*pictures).mean().item()
    assert feature_distance(str(drawn), *pictures).item() == pytest.approx(expected, rel=1e-4)


def _as_slices(network: features.AlexNetFeatures, peer: lpips.LPIPS) -> dict[str, torch.Tensor]:
    own = network.layers.state_dict()
    return {name: own[".".join(name.split(".")[1:])] for name in peer.net.state_dict()}


def test_it_is_zero_for_the_same_and_has_a_gradient_for_others(
    drawn: Path, pictures: tuple[torch.Tensor, torch.Tensor]
) -> None:
    a, b = pictures
    assert feature_distance(str(drawn), a, a).item() == 0
    a.requires_grad_(True)
    feature_distance(str(drawn), a, b).backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


def test_values_outside_of_pictures_are_seen_at_the_edge_but_still_pulled_back(drawn: Path) -> None:
    outside = torch.full((1, 3, 32, 32), 1.5, requires_grad=True)
    distance = feature_distance(str(drawn), outside, torch.zeros(1, 3, 32, 32))
    at_edge = feature_distance(str(drawn), torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert distance.item() == pytest.approx(at_edge.item(), rel=1e-3)


def test_weights_that_cannot_be_read_or_fetched_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.zeros(1, 3, 32, 32)
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(Failure, match=r"no\.safetensors: not readable as safetensors"):
        feature_distance(str(tmp_path / "no.safetensors"), picture, picture)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.AlexNet_Weights.get_state_dict", offline)
    with pytest.raises(Failure, match=r"cannot be fetched \(no network\); connect once, or give them"):
        feature_distance("", picture, picture)
