"""The processes of a run: this one alone, or all that torchrun or launch.py started. It knows no networks or data.

Every process trains on its rows of the same global batch; the main one (rank 0) alone writes files and prints.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from cfgdiff.runtime.errors import Failure

from .config import BadSetting


@dataclass(frozen=True)
class Processes:
    """This process among `size`, and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def rows(self, batch: int, parts: int) -> slice:
        """This process's rows of a batch. Raises `BadSetting` unless every process gets the same number in `parts`."""
        if batch % (self.size * parts):
            shares = f"{self.size} process(es) times train.accumulate={parts}"
            raise BadSetting(f"train.batch={batch}: must be a multiple of {shares}; change one of them")
        count = batch // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in the place of each tensor; all must call this."""
        if self.size > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def check_same(self, value: int, what: str) -> None:
        """Raises `Failure` where the processes have different values; all must call this."""
        (main,) = self.total(value * self.main)
        (differing,) = self.total(value != main)
        if differing:
            found = f"expected {main:.0f} in all processes, as in the first, found others in {differing:.0f}"
            raise Failure(f"{what}: {found}; --out must be one folder, on a file system that all machines share")

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do."""
        if self.size > 1 and not self.main:
            dist.barrier()
        yield
        if self.size > 1 and self.main:
            dist.barrier()


def here() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


@contextmanager
def joined() -> Iterator[Processes]:
    """All processes of the run: those that torchrun or launch.py announces (RANK, WORLD_SIZE), else this one."""
    device = here()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Processes(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # what started them keeps the store, in which processes that failed have left their addresses
        store = dist.PrefixStore(f"start {_starts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield Processes(device, rank, size)
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun started this process in place of one that failed."""
    return _starts() > 0


def _starts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def shard(network: nn.Module) -> None:
    """Cut every parameter up over all processes, in place (FSDP2, Zhao et al. 2023); blocks are gathered when used."""
    for blocks in (module for module in network.modules() if isinstance(module, nn.ModuleList)):
        for block in blocks:
            fully_shard(block, reshard_after_forward=True)
    fully_shard(network, reshard_after_forward=True)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors, which may be cut up, that this process holds."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def gathered(tensor: Tensor) -> Tensor:
    """A tensor, which may be cut up, gathered in every process; all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, cut up as `other` is; all processes must call this."""
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor


@torch.no_grad()
def copy_gathered(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same name, which may be cut up. Raises `KeyError` for a missing one."""
    for name, target in targets.items():
        target.copy_(cut_like(sources[name].to(target.device), target))
