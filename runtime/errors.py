"""The two errors a user may meet, each one line long. They know nothing of the command line except their exit code."""


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
