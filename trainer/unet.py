"""The U-Net with the ADM improvements (Dhariwal & Nichol 2021). It knows no noise schedule, loss or guidance.

The timestep embedding plus the class embedding modulates every residual block: it becomes a scale and a shift of each
channel between the block's two convolutions. Resolution changes happen inside residual blocks, attention has heads of a
fixed width. Optionally the picture is pixel-unshuffled first, so that the network runs at a fraction of the resolution.

`norm` names the layer before each activation. `group` is ADM's group normalisation; with the modulation it is AdaGN.
With `affine` nothing is normalised: the modulation alone scales and shifts. It trains because residual branches start
at zero and convolutions start with the variance that SiLU keeps (Zhang et al. 2019; Brock et al. 2021). Engines and
bfloat16 training save most of the time outside of convolutions: a normalisation reads every activation twice and fuses
with nothing.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import NetworkConfig

# sqrt(1 / E[silu(z)^2]), z ~ N(0, 1): convolutions of this deviation times 1 / sqrt(fan-in) keep the variance
SILU_GAIN = 1.68


def make_norm(norm: str, channels: int) -> nn.Module:
    """The layer before an activation: group normalisation, up to 32 groups of 4 or more channels, or none (affine)."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels) if norm == "group" else nn.Identity()


def conv(inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    """A convolution that keeps the resolution; `zero` starts it at zero, so that its branch starts as nothing."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    if zero:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def skip_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that starts orthogonal: it keeps the variance, so deep blocks get enough of the gradient."""
    layer = conv(inputs, outputs, 1)
    nn.init.orthogonal_(layer.weight)
    return layer


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t (Vaswani et al. 2017; DDPM): (B,) float -> (B, width)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = t.float()[:, None] * frequencies  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """ADM's residual block: norm, SiLU, (up or down), conv, norm, modulation, SiLU, dropout, conv; and a skip.

    Args:
        inputs, outputs: channels.
        embedding: E, the width of what it is conditioned on.
        config: its `norm` and `dropout`.
        resample: none, up or down.
        late: resample after the first convolution and the skip's, which then work on fewer positions if the block
            goes up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        config: NetworkConfig,
        resample: str = "none",
        late: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.late = resample, late
        self.norm_in, self.conv_in = make_norm(config.norm, inputs), conv(inputs, outputs)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out, self.conv_out = make_norm(config.norm, outputs), conv(outputs, outputs, zero=True)
        self.dropout = nn.Dropout(config.dropout)
        self.skip = skip_conv(inputs, outputs) if inputs != outputs else nn.Identity()
        if config.norm == "affine":
            nn.init.normal_(self.conv_in.weight, std=SILU_GAIN / math.sqrt(self.conv_in.weight[0].numel()))
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, E) -> (B, outputs, H', W')."""
        h = F.silu(self.norm_in(x))
        h = self._resample(self.conv_in(h)) if self.late else self.conv_in(self._resample(h))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)  # (B, outputs, 1, 1) each
        h = self.norm_out(h) * (1 + scale) + shift
        skip = self._resample(self.skip(x)) if self.late else self.skip(self._resample(x))
        return skip + self.conv_out(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over positions, one head for every whole `config.head_channels` channels, added to its input."""

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = max(1, channels // config.head_channels)
        self.norm = make_norm(config.norm, channels)
        self.qkv, self.out = conv(channels, 3 * channels, 1), conv(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3 * self.heads, c // self.heads, h * w)
        q, k, v = qkv.chunk(3, dim=1)  # (B, heads, C / heads, H W) each
        # (B, heads, H W, H W); with few positions faster than fused attention on a CPU
        weights = torch.softmax((q * q.shape[2] ** -0.5).mT @ k, dim=-1)
        return x + self.out((v @ weights.mT).reshape(b, c, h, w))


class Stage(nn.Module):
    """A residual block, with attention after it where asked for."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention, self.upsamples = block, attention, block.resample == "up"

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """As `ResidualBlock.forward`."""
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """The prediction (eps, v or x0) from x_t, t and the class.

    Args:
        config: widths and depths.
        image_shape: (C, H, W) of a picture.
        num_classes: K; the label K is the null class of classifier-free guidance (Ho & Salimans 2022).
    """

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.patch, self.width = config.patch, config.channels
        inputs, embedding = image_shape[0] * config.patch**2, 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding)
        nn.init.normal_(self.label.weight, std=0.02)
        self.stem = conv(inputs, config.channels)

        size, channels, skips = image_shape[1] // config.patch, config.channels, [config.channels]

        def stage(inputs: int, outputs: int, resample: str = "none", late: bool = False) -> Stage:
            block = ResidualBlock(inputs, outputs, embedding, config, resample, late)
            return Stage(block, Attention(outputs, config) if size in config.attention else None)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            if level:
                size //= 2
                self.down.append(stage(channels, channels, "down"))
                skips.append(channels)
            for _ in range(config.blocks):
                self.down.append(stage(channels, multiplier * config.channels))
                channels = multiplier * config.channels
                skips.append(channels)
        middle = [ResidualBlock(channels, channels, embedding, config) for _ in range(2)]
        self.middle = nn.ModuleList([Stage(middle[0], Attention(channels, config)), Stage(middle[1], None)])
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                self.up.append(stage(channels + skips.pop(), multiplier * config.channels))
                channels = multiplier * config.channels
            if level:
                size *= 2
                wide = channels
                if config.narrow_up:
                    channels = config.multipliers[level - 1] * config.channels
                self.up.append(stage(wide, channels, "up", late=config.narrow_up))
        self.norm, self.head = make_norm(config.norm, channels), conv(channels, inputs, zero=True)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The prediction at x_t.

        Args:
            x: x_t, (B, C, H, W).
            t: 0 .. T, fractional allowed, (B,).
            label: class 0 .. K-1, or K for none, (B,) int64.

        Returns:
            eps, v or x0, (B, C, H, W).
        """
        return self.answer(x, self.embed(t, label))

    def embed(self, t: Tensor, label: Tensor) -> Tensor:
        """The embedding of t and the class, before its last activation: (B,), (B,) -> (B, E)."""
        embedding: Tensor = self.time(timestep_embedding(t, self.width)) + self.label(label)
        return embedding

    def answer(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x_t (B, C, H, W) and what `embed` returned -> the prediction."""
        embedding = F.silu(embedding)
        x = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips = [x]
        for stage in self.down:
            x = stage(x, embedding)
            skips.append(x)
        for stage in self.middle:
            x = stage(x, embedding)
        for stage in self.up:
            if not stage.upsamples:
                x = torch.cat([x, skips.pop()], dim=1)
            x = stage(x, embedding)
        x = self.head(F.silu(self.norm(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x
