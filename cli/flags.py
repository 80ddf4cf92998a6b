"""Shared by commands: types of flags, which flags were typed, and logging."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

MOST_STEPS = 1_000_000


class Numbers(click.ParamType):
    """A list of numbers in one word, as in 0.3,5. Others are a `UsageError` that names the flag.

    Args:
        like: what is expected, with an example, as in "LO,HI as in 0.3,5".
        count: how many; None: any number of them, but one at least.
    """

    name = "numbers"

    def __init__(
        self, like: str, count: int | None = None, number: Callable[[str], Any] = float, separator: str = ","
    ) -> None:
        self._like, self._count, self._number, self._separator = like, count, number, separator

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The numbers in `value`."""
        if not isinstance(value, str):
            return tuple(value)  # numbers already, as a default may be
        try:
            numbers = tuple(self._number(part) for part in value.split(self._separator))
        except ValueError:
            numbers = ()
        if not numbers or self._count not in (None, len(numbers)):
            flag = param.opts[0] if param else self.name
            raise click.UsageError(f"{flag}: expected {self._like}, found '{value}'", ctx)
        return numbers


class Count(click.ParamType):
    """A whole number of at least `least` and at most `most`. Others are a `UsageError` that names the flag."""

    name = "integer"

    def __init__(self, least: int = 1, most: int = 1_000_000) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that `value` says."""
        flag = param.opts[0] if param else self.name
        try:
            number = int(value)
        except ValueError:
            raise click.UsageError(f"{flag}: expected a whole number, found '{str(value)[:40]}'", ctx) from None
        if not self._least <= number <= self._most:
            expected = f"{self._least} or more" if number < self._least else f"{self._least} .. {self._most}"
            raise click.UsageError(f"{flag}: expected {expected}, found {number}", ctx)
        return number


class FilePath(click.Path):
    """A path that is not empty: pathlib would read that as the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that `value` says."""
        if value == "":
            raise click.UsageError(f"{param.opts[0] if param else self.name}: expected a file or folder, found ''", ctx)
        return super().convert(value, param, ctx)


class Destination(FilePath):
    """A path, or the text of a URL, which pathlib would damage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path or URL that `value` says."""
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


INTERVAL = Numbers("LO,HI as in 0.3,5", count=2)


def typed_flags(context: click.Context) -> dict[str, str]:
    """The flags on the command line, by the names of their parameters."""
    line = click.core.ParameterSource.COMMANDLINE
    return {
        str(p.name): p.opts[0]
        for p in context.command.params
        if p.name and context.get_parameter_source(p.name) is line
    }


def log_to_stderr(verbose: bool = False) -> None:
    """Show warnings, and that engines are being measured, on standard error; with `verbose`, why one was taken."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("cfgdiff.speeds").setLevel(logging.INFO)


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, if a terminal, and if there is something to do. Call it with what is done."""
    hidden = not sys.stderr.isatty() or not length
    with click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
