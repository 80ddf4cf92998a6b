"""The flags of `cfgdiff-run` for large sets in shards, and which other flags go with them. It loads nothing heavy."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from .flags import Count

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
MOST = 10**12  # pictures
FORMATS = ("tar", "parquet", "folder")
# Flags that have no effect with --shard-size, and why.
ALONE = {
    "interpolate": "has no effect with --shard-size, which draws single pictures; leave it out",
    "frames": "has no effect with --shard-size, which draws single pictures; leave it out",
    "resume": "has no effect with --shard-size, which always continues; leave it out",
    "stream": "has no effect with --shard-size, which shows how far it is; leave it out",
}
NEEDED = "is for sets in shards, found no --shard-size; add --shard-size PICTURES"


@dataclass(frozen=True)
class Sharding:
    """What the flags say of a set's shards; None where they say nothing.

    Attributes:
        size: pictures in a shard.
        format: a name in `FORMATS`.
        ranges: of the shards to make, first and last.
        part: i of n: the shards k for which k % n == i.
        check: sha256 or size.
        ray: the address of a Ray cluster, or "local".
        actors: on it.
    """

    size: int
    format: str
    ranges: tuple[tuple[int, int], ...] | None
    part: tuple[int, int] | None
    check: str | None
    ray: str | None
    actors: int | None

    def wanted(self, count: int) -> Sequence[int]:
        """The numbers of the shards to make, of `count`. Raises `UsageError` for one that there is not."""
        if self.part is not None:
            return range(self.part[0], count, self.part[1])
        if self.ranges is None:
            return range(count)
        if (last := max(last for _, last in self.ranges)) >= count:
            raise click.UsageError(f"--shards: expected 0 .. {count - 1}, found {last}; see --n and --shard-size")
        return sorted({k for first, last in self.ranges for k in range(first, last + 1)})

    @property
    def shared(self) -> bool:
        """Whether other machines are likely to make other shards of the set."""
        return any(value is not None for value in (self.ranges, self.part, self.ray))


class Ranges(click.ParamType):
    """Numbers and ranges of them, as 17,20-39."""

    name = "ranges"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """First and last of each range."""
        found = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise click.UsageError(f"--shards: expected numbers as in 17,20-39, found '{str(value)[:40]}'", ctx)
            found.append((first, last))
        return tuple(found)


class Part(click.ParamType):
    """I/N, as 0/8 .. 7/8."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """I and N."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if not match or int(match[1]) >= int(match[2]):
            expected = "expected I/N with I of 0 .. N-1, as 0/8 .. 7/8"
            raise click.UsageError(f"--shard-of: {expected}, found '{str(value)[:40]}'", ctx)
        return int(match[1]), int(match[2])


OPTIONS = (
    click.option("--shard-size", type=Count(most=1_000_000), metavar="PICTURES",
                 help="Draw a large set in shards of so many pictures into --out, a folder or a URL as "
                      "s3://bucket/set. Finished shards are kept."),
    click.option("--shard-format", default="tar", show_default=True, type=click.Choice(FORMATS), metavar="NAME",
                 help="Of a shard: tar (WebDataset), parquet (Hugging Face datasets) or folder."),
    click.option("--shards", type=Ranges(), metavar="K[-K][,...]", help="Make these shards alone, as 17,20-39."),
    click.option("--shard-of", type=Part(), metavar="I/N",
                 help="Make every N-th shard from I on, 0 .. N-1: the share of one of N machines."),
    click.option("--check", type=click.Choice(["sha256", "size"]),
                 help="What is compared with the manifests of finished shards. Default: sha256, and size at a URL."),
    click.option("--ray", metavar="ADDRESS", help="Draw on a Ray cluster; local starts one here."),
    click.option("--actors", type=Count(most=100_000), help="Processes on the Ray cluster that draw, each with "
                 "--threads CPU threads (default: 1) or one GPU. Default: as many as it has room for."),
)  # fmt: skip
NAMES = ("shard_size", "shard_format", "shards", "shard_of", "check", "ray", "actors")


def shard_flags(command: Decorated) -> Decorated:
    """Adds the flags to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def taken(flags: dict[str, Any]) -> Sharding | None:
    """What the flags say, which are removed from `flags`; None: no shards."""
    size, *others = (flags.pop(name) for name in NAMES)
    return None if size is None else Sharding(size, *others)


def plain_place(out: Path | str, n: int | None, most: int) -> Path:
    """Where pictures without shards go. Raises `UsageError` for what only shards can do."""
    if isinstance(out, str):
        raise click.UsageError(f"--out: a URL is for sets in shards, found {out}; add --shard-size PICTURES")
    if n is not None and n > most:
        raise click.UsageError(f"--n: expected 1 .. {most}, found {n}; for more, add --shard-size PICTURES")
    return out


def idle_shard_flags(values: dict[str, Any]) -> dict[str, str]:
    """Why flags would have no effect, by the names of their parameters."""
    if values["shard_size"] is None:
        return dict.fromkeys(NAMES, NEEDED)
    idle = dict(ALONE)
    if values["shards"] is not None:
        idle["shard_of"] = "names shards as --shards does; leave out one of the two"
    if values["ray"] is None:
        idle["actors"] = "are processes on a Ray cluster, found no --ray; add --ray local, or an address"
    return idle
