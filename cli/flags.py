"""What several commands have in common: numbers in a list, the question which flags were typed, and what is logged."""

import logging
from collections.abc import Callable
from typing import Any

import click


class Numbers(click.ParamType):
    """A list of numbers in one word, as in 0.3,5. What is not is a `UsageError` that names the flag.

    Args:
        like: what is expected, with an example, as in "LO,HI as in 0.3,5".
        count: how many; None: any number of them, but one at least.
    """

    name = "numbers"

    def __init__(self, like: str, count: int | None = None, number: Callable[[str], Any] = float, separator: str = ",") -> None:
        self._like, self._count, self._number, self._separator = like, count, number, separator

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The numbers in `value`."""
        if not isinstance(value, str):
            return tuple(value)  # numbers already, as a default may be
        try:
            found = tuple(self._number(part) for part in value.split(self._separator))
        except ValueError:
            found = ()
        if not found or self._count not in (None, len(found)):
            flag = param.opts[0] if param else self.name
            raise click.UsageError(f"{flag}: expected {self._like}, found '{value}'", ctx)
        return found


INTERVAL = Numbers("LO,HI as in 0.3,5", count=2)


def typed_flags(context: click.Context) -> dict[str, str]:
    """The flags on the command line, by the names of their parameters."""
    line = click.core.ParameterSource.COMMANDLINE
    return {str(p.name): p.opts[0] for p in context.command.params if p.name and context.get_parameter_source(p.name) is line}


def log_to_stderr(verbose: bool = False) -> None:
    """Show warnings on standard error, and that engines are being measured, which takes seconds; with `verbose`, why one was taken."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("cfgdiff.speeds").setLevel(logging.INFO)
