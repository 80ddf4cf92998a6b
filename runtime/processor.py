"""This machine's processor: its name, and the instructions that it can be asked for."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Those that decide what is fast in a network, the most telling last.
NOTABLE = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A name as its maker gives it, and all instructions that it names; none where the system does not tell."""

    name: str
    instructions: frozenset[str]

    @property
    def notable(self) -> tuple[str, ...]:
        """Those of `NOTABLE` that it has, the most telling last."""
        return tuple(name for name in NOTABLE if name in self.instructions)


@cache
def processor() -> Processor:
    """From /proc/cpuinfo where there is one, as on Linux."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return Processor(name, frozenset((told.get("flags") or told.get("Features") or "").split()))  # Features: on Arm
