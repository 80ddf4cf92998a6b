"""A small classifier: it judges whether samples show the class asked for, and its features are a space to compare
pictures in.

The network is a chain of 3x3 convolutions in pairs, as in the speed runs on CIFAR-10 (Page 2019, Jordan 2024): a first
layer that starts by whitening 2x2 patches, batch normalisation, GELU, the maximum over all positions, one linear layer.
The optimisers are those of `cfgdiff train`. `build` makes an ONNX graph that needs no PyTorch: pictures (B, C, H, W)
float32 in -1 .. 1 -> logits (B, K) and features (B, F), with the classes and the accuracy on held-out pictures in its
metadata.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cfgdiff.export.edit import store_half
from cfgdiff.trainer.config import OptimiserConfig
from cfgdiff.trainer.data import PictureSet, batch_indices
from cfgdiff.trainer.optim import fast_bfloat16, make_optimisers, rate_factor, set_rate

WIDTHS = (32, 96, 192)
OPTIMISER = OptimiserConfig(
    name="muon", lr=6e-3, beta2=0.95, muon_lr=0.1, muon_momentum=0.85, warmup_steps=100, decay_share=0.9
)
BATCH, SHIFT, SMOOTHING, AVERAGE = 125, 2, 0.2, 0.99


class Classifier(nn.Module):
    """Pictures (B, C, H, W) in -1 .. 1 -> logits (B, K), features (B, F)."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8 * channels, 2)
        before = (8 * channels, *widths[:-1])
        self.groups = nn.Sequential(*(_group(i, o) for i, o in zip(before, widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.groups(nn.functional.gelu(self.stem(pictures))).amax((2, 3))  # (B, F)
        return self.head(features), features

    @torch.no_grad()
    def whiten(self, pictures: Tensor) -> None:
        """Set the stem from 2x2 patches of `pictures` (N, C, H, W): their principal directions, to unit variance, with
        both signs."""
        patches = nn.functional.unfold(pictures, 2).transpose(1, 2).flatten(0, 1)  # (N positions, 4 C)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        weight = (vectors / (values + 1e-3).sqrt()).T.reshape(-1, *self.stem.weight.shape[1:])
        self.stem.weight.copy_(torch.cat([weight, -weight]))


def _group(inputs: int, outputs: int) -> nn.Sequential:
    def convolution(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, outputs, 3, padding=1, bias=False)

    return nn.Sequential(convolution(inputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU(),
                         convolution(outputs), nn.BatchNorm2d(outputs), nn.GELU())  # fmt: skip


def to_float(pictures: np.ndarray) -> Tensor:
    """(B, C, H, W) uint8 -> float32 in -1 .. 1."""
    return torch.from_numpy(pictures).float() / 127.5 - 1


def augmented(pictures: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) shifted by up to `SHIFT` pixels, edges reflected; those of `mirrored` (B,) bool mirrored."""
    n, _, height, width = pictures.shape
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    padded = nn.functional.pad(pictures, [SHIFT] * 4, mode="reflect")
    rows, columns = torch.randint(0, 2 * SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def bfloat16_is_fast() -> bool:
    """Whether `train` in bfloat16 is faster than in float32 here."""
    return fast_bfloat16(torch.device("cpu"))


def train(data: PictureSet, epochs: float, seed: int = 0, watch: Callable[[int], object] = lambda n: None,
          bfloat16: bool = False) -> Classifier:  # fmt: skip
    """Train on the training pictures; a picture is mirrored in every second epoch.

    Args:
        watch: gets the pictures of each step.
        bfloat16: compute the products in bfloat16, the weights staying in float32.

    Returns:
        The running average of the weights, in evaluation mode.
    """
    torch.manual_seed(seed)
    generator, n = torch.Generator().manual_seed(seed), len(data.pictures)
    network = Classifier(data.pictures.shape[1], len(data.class_names))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.whiten(to_float(data.pictures[batch_indices(n, 0, min(n, 2000), seed)]))
    average, optimisers = copy.deepcopy(network), make_optimisers(network, OPTIMISER)
    first_mirrored = torch.rand(n, generator=generator) < 0.5
    batch = min(BATCH, n)
    steps = max(1, round(epochs * n / batch))
    rates = OPTIMISER.model_copy(update={"warmup_steps": min(OPTIMISER.warmup_steps, steps // 10)})
    for step in range(steps):
        indices = batch_indices(n, step * batch, batch, seed)
        odd = torch.from_numpy(np.arange(step * batch, (step + 1) * batch) // n % 2 == 1)
        x = augmented(to_float(data.pictures[indices]), first_mirrored[indices] ^ odd, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits, _ = network(x.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(
            logits.float(), torch.from_numpy(data.labels[indices]), label_smoothing=SMOOTHING
        )
        loss.backward()
        set_rate(optimisers, rate_factor(rates, step, step / steps))
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        share = min(AVERAGE, (1 + step) / (10 + step))
        for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            mean.lerp_(value, 1 - share) if mean.is_floating_point() else mean.copy_(value)
        watch(batch)
    return average.eval()


@torch.no_grad()
def accuracy(network: Classifier, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures (N, C, H, W) uint8 whose largest logit is their label's."""
    predicted = [
        network(to_float(part))[0].argmax(1) for part in np.array_split(pictures, max(1, len(pictures) // 500))
    ]
    return float((torch.cat(predicted).numpy() == labels).mean())


def build(network: Classifier, size: int, metadata: Mapping[str, object]) -> onnx.ModelProto:
    """The classifier as ONNX, B dynamic, weights stored as float16; `metadata` as JSON, by key."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a torchvision that is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user could act on
        program = torch.onnx.export(
            network.cpu(), (torch.zeros(2, network.stem.in_channels, size, size),), dynamo=True, opset_version=18,
            input_names=["pictures"], output_names=["logits", "features"], optimize=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("B", min=1, max=4096)},),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    store_half(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return model
