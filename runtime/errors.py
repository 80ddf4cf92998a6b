"""The two errors that users meet, each one line long, and the checks that raise them.

A message that is about a parameter begins with its name, as in "steps: expected ..."; other parameters in it stand in
backquotes. The command line puts its flags in their place. A message that is about a file begins with its path.
"""

import operator
from collections.abc import Collection
from typing import Any


class Failure(Exception):
    """A file, a folder or an engine is missing, damaged or fails. Exit code 1."""

    exit_code = 1


class BadInput(Failure, ValueError):
    """An argument names what does not exist, or makes no sense. Exit code 2."""

    exit_code = 2


def nearest(word: str, choices: list[str]) -> str:
    """``"; did you mean 'frog'?"`` where a choice is close to `word`, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def named(parameter: str, kind: str, word: str, choices: Collection[str]) -> str:
    """The one of `choices` that `word` names: exactly, else in other upper and lower case.

    Args:
        kind: what the choices are, for the message.

    Raises:
        BadInput: naming `parameter`: `word` names none of the choices, or several.
    """
    same = [word] if word in choices else [choice for choice in choices if choice.casefold() == word.casefold()]
    if len(same) > 1:
        raise BadInput(f"{parameter}: {kind} '{word}' may be {' or '.join(same)}; write it as it stands there")
    if not same:
        expected = f"choose from {', '.join(choices)}{nearest(word, list(choices))}"
        raise BadInput(f"{parameter}: no {kind} '{word}'; {expected}")
    return same[0]


def whole_number(parameter: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value`, Python's or NumPy's, as an int. Raises `BadInput` unless it is a whole number within the bounds."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise BadInput(f"{parameter}: expected {least} or more, a whole number, found {value!r:.60}")
    if most is not None and number > most:
        raise BadInput(f"{parameter}: expected at most {most}, found {value!r:.60}")
    return number
