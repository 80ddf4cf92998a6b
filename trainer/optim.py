"""AdamW, or Muon (Jordan et al. 2024) for the network's inner matrices and AdamW for the rest; learning rates."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfgdiff.runtime.errors import Failure

from . import registry
from .config import BadSetting, OptimiserConfig
from .distributed import cut_like, gathered, local


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16; others emulate it, a hundred times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 cannot tell
    return any(instructions.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # "bf16" is Arm's


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices, by Newton-Schulz iterations of degree 5: (K, M, N) float32.

    Each iteration multiplies X with a polynomial of X X^T. These polynomials commute, so their product is computed
    first, on the short side: less than half of the work for a 3x3 convolution, and the same result.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: singular values land in about [0.7, 1.2]
    x = matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    gram = x @ x.mT  # (K, M, M)
    factor = torch.eye(gram.shape[1], device=x.device).expand_as(gram)
    for _ in range(iterations):
        step = torch.baddbmm(b * gram, gram, gram, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        factor, gram = step @ factor, step @ gram @ step
    x = factor @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every weight seen as a matrix (outputs, everything else); equal shapes go together."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, params in alike.items():
                self._update(params, shape, **{key: group[key] for key in ("lr", "momentum", "weight_decay")})

    def _update(
        self, params: list[nn.Parameter], shape: torch.Size, lr: float, momentum: float, weight_decay: float
    ) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        averages = [self.state[p]["momentum"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(local(averages), local(grads), 1 - momentum)
        ahead = torch._foreach_lerp(grads, averages, momentum)
        nesterov = torch.stack([gathered(g) for g in ahead]).flatten(2)  # (K, M, N)
        scale = max(1.0, nesterov.shape[1] / nesterov.shape[2]) ** 0.5
        updates = [
            cut_like(update.reshape(shape), p) for p, update in zip(params, orthogonalise(nesterov), strict=True)
        ]
        torch._foreach_mul_(local(params), 1 - lr * weight_decay)
        torch._foreach_add_(local(params), local(updates), alpha=-lr * scale)


def adamw(network: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for every parameter."""
    return [_adamw(list(network.parameters()), config)]


def muon(network: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the convolutions and attention between stem and head, AdamW for the rest."""
    named = list(network.named_parameters())
    inner = [p for name, p in named if p.ndim == 4 and not name.startswith(("stem", "head"))]
    rest = [p for name, p in named if p.ndim != 4 or name.startswith(("stem", "head"))]
    if not inner:
        missing = "this network has no convolutions between stem and head"
        raise BadSetting(f"optimiser.name=muon: {missing}; set optimiser.name=adamw")
    return [_adamw(rest, config), Muon(inner, config.muon_lr, config.muon_momentum, config.weight_decay)]


def _adamw(params: list[nn.Parameter], config: OptimiserConfig) -> torch.optim.Optimizer:
    fused = params[0].is_cuda  # elsewhere torch updates them together where it can
    return torch.optim.AdamW(
        params, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=fused or None
    )


def make_optimisers(network: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """The optimisers that together hold every parameter once; each group remembers its full rate as `base_lr`.

    Raises:
        Failure: an optimiser of a plugin that holds a parameter twice or not at all.
    """
    optimisers: list[torch.optim.Optimizer] = registry.bound("optimiser", config.name, config.options)(network, config)
    held = [id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]
    wanted = [id(p) for p in network.parameters() if p.requires_grad]
    if sorted(held) != sorted(wanted):
        expected, places = f"each of the {len(wanted)} parameters once", f"holds {len(set(held))} in {len(held)} places"
        raise Failure(f"optimiser '{config.name}': must hold {expected}, {places}")
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    return optimisers


def rate_factor(config: OptimiserConfig, step: int, progress: float) -> float:
    """The factor of the rates: linear warm-up in steps, then 1, then linear to 0 over the last `decay_share`.

    Args:
        step: steps done before this one.
        progress: share of the run done, 0 .. 1.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = min(1.0, (1 - progress) / config.decay_share) if config.decay_share else 1.0
    return warm * max(0.0, decay)


def set_rate(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times its full rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["base_lr"]
