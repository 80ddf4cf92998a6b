"""The two errors a user may meet, each one line long. They know nothing of the command line except their exit code."""

import operator
from collections.abc import Collection
from typing import Any


class Failure(Exception):
    """Something outside the program is not as it must be (a file, a folder, an engine). One line; exit code 1."""

    exit_code = 1


class BadInput(Failure, ValueError):
    """The caller asked for something that does not exist or makes no sense. One line; exit code 2."""

    exit_code = 2


def nearest(word: str, choices: list[str]) -> str:
    """``"; did you mean 'frog'?"`` where a choice is close to `word`, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def named(flag: str, kind: str, word: str, choices: Collection[str]) -> str:
    """The one of `choices` that `word` names: exactly, else in other upper and lower case.

    Raises:
        BadInput: naming `flag`, where it names none, with the choices and the nearest, or several.
    """
    same = [word] if word in choices else [choice for choice in choices if choice.casefold() == word.casefold()]
    if len(same) > 1:
        raise BadInput(f"{flag}: {kind} '{word}' may be {' or '.join(same)}; write it as it stands there")
    if not same:
        raise BadInput(f"{flag}: no {kind} '{word}'; choose from {', '.join(choices)}{nearest(word, list(choices))}")
    return same[0]


def whole(flag: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int, be it Python's or NumPy's. Raises `BadInput`, naming `flag`, for what is outside the bounds or no whole number."""
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise BadInput(f"{flag}: expected {least} or more, a whole number, found {value!r:.60}")
    if most is not None and found > most:
        raise BadInput(f"{flag}: expected at most {most}, found {value!r:.60}")
    return found
