"""Features against PyTorch, the embedding against the lpips package, both on the same weights."""

import os
from pathlib import Path

import numpy as np
import pytest

from cfgdiff.benchmarks.alexnet import (
    SCALE,
    SHIFT,
    embedding,
    find_weights,
    open_vectors,
    pooled,
    read_linear,
    read_weights,
    weights_digest,
)
from cfgdiff.runtime.errors import Failure


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("weights", ["drawn_weights", "published"])
def test_the_features_are_pytorchs(weights: str, size: int, request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")
    found = read_weights(request.getfixturevalue(weights), "--alexnet")
    tensors = {name: torch.from_numpy(array) for name, array in found.items()}
    pictures = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2) / 127.5 - 1).float()  # (B, 3, H, W)
    x = (x - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
    x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False)
    # the scaled picture is resized here, the resized one scaled there: the same, as weights of a resize sum to 1
    for name, stride, padding, pool in (
        ("0", 4, 2, 1),
        ("3", 1, 2, 1),
        ("6", 1, 1, 0),
        ("8", 1, 1, 0),
        ("10", 1, 1, 0),
    ):
        x = torch.nn.functional.conv2d(
            x, tensors[f"features.{name}.weight"], tensors[f"features.{name}.bias"], stride, padding
        ).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2) if pool else x
    expected = x.mean((2, 3)).numpy()
    assert x.shape[1:] == (256, 3, 3) and expected.std() > 0.01
    np.testing.assert_allclose(open_vectors(pooled(found), 1)(pictures), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_alexnets_are_refused(drawn_weights: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    with pytest.raises(Failure, match=r"^--alexnet: .*absent: not readable as safetensors \(No such file[^\n]*$"):
        read_weights(tmp_path / "absent", "--alexnet")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(Failure, match=r"^--alexnet: .*text: not readable as safetensors [^\n]*$"):
        read_weights(tmp_path / "text", "--alexnet")
    tensors = load_file(drawn_weights)
    save_file(tensors | {"features.3.bias": np.zeros(5, np.float32)}, tmp_path / "wrong")
    with pytest.raises(Failure, match=r"expected a tensor features\.3\.bias \(192,\), found \(5,\)"):
        read_weights(tmp_path / "wrong", "--alexnet")
    save_file({name: array for name, array in tensors.items() if name != "features.10.weight"}, tmp_path / "less")
    with pytest.raises(Failure, match=r"features\.10\.weight \(256, 256, 3, 3\), found none"):
        read_weights(tmp_path / "less", "--alexnet")


def lpips_of(weights: dict[str, np.ndarray]) -> object:
    """The lpips package's network with these weights in its AlexNet."""
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    lpips = pytest.importorskip("lpips", reason="needs the train extra: pip install 'cfgdiff[train]'")
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    own = {
        name: p
        for part in network.net.children()
        if isinstance(part, torch.nn.Sequential)
        for name, p in part.named_parameters()
    }
    for name, p in own.items():
        p.data.copy_(torch.from_numpy(weights[f"features.{name}"]))
    assert len(own) == len(weights)
    return network


@pytest.mark.filterwarnings("ignore")  # torchvision's and lpips's own deprecations
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
@pytest.mark.parametrize("weights", ["drawn_weights", "published"])
def test_squared_distances_are_those_of_the_lpips_package(
    weights: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    found = read_weights(request.getfixturevalue(weights), "--alexnet")
    network = lpips_of(found)
    import torch

    rng, n = np.random.default_rng(3), 200
    pictures = rng.integers(0, 256, (2 * n, *size, 3), dtype=np.uint8)
    pictures[: n // 2] = pictures[n : n + n // 2] // 2 + pictures[: n // 2] // 2  # half of the pairs are alike
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2) / 127.5 - 1).float()
    with torch.no_grad():
        expected = network(x[:n], x[n:]).ravel().numpy()  # type: ignore[operator]
    vectors = open_vectors(embedding(found, read_linear(), *size), 1)(pictures).astype(np.float64)
    squares = np.square(vectors[:n] - vectors[n:]).sum(1)
    assert expected.std() > 0.01
    np.testing.assert_allclose(squares, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_published_pairs(published: Path) -> None:
    folder = os.environ.get("CFGDIFF_LPIPS_PICTURES")
    if not folder:
        pytest.skip(
            "needs ex_ref.png, ex_p0.png and ex_p1.png of the lpips project: set CFGDIFF_LPIPS_PICTURES to their folder"
        )
    from PIL import Image

    pictures = np.stack(
        [np.asarray(Image.open(Path(folder) / f"ex_{name}.png").convert("RGB")) for name in ("ref", "p0", "p1")]
    )
    vectors = open_vectors(embedding(read_weights(published, "--alexnet"), read_linear(), *pictures.shape[1:3]), 1)(
        pictures
    )
    squares = np.square(vectors[1:].astype(np.float64) - vectors[0]).sum(1)
    np.testing.assert_allclose(squares, [0.722, 0.138], atol=6e-4)


def test_pictures_too_small_for_lpips_are_refused(drawn_weights: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    with pytest.raises(Failure, match=r"^LPIPS: .* expected pictures of at least 31x31, found 16x32$"):
        embedding(read_weights(drawn_weights, "--alexnet"), read_linear(), 16, 32)


def test_weights_have_one_digest_wherever_they_come_from(drawn_weights: Path) -> None:
    found = find_weights(drawn_weights)
    assert weights_digest(found) == weights_digest(dict(reversed(found.items())))
    assert weights_digest(found) != weights_digest(found | {"features.0.bias": found["features.0.bias"] + 1})
