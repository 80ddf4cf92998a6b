"""This machine's processor: its name and its instructions."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Those that decide which precisions are fast, the most important last.
NOTABLE = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A name as the maker gives it, and its instructions; none where the system does not list them."""

    name: str
    instructions: frozenset[str]

    @property
    def notable(self) -> tuple[str, ...]:
        """Those of `NOTABLE` that it has, the most important last."""
        return tuple(name for name in NOTABLE if name in self.instructions)


@cache
def processor() -> Processor:
    """From /proc/cpuinfo where there is one, as on Linux."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = entries.get("model name") or platform.processor() or platform.machine()
    # Features: on Arm
    return Processor(name, frozenset((entries.get("flags") or entries.get("Features") or "").split()))
