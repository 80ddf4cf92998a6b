"""How commands fail: one line on standard error, exit code 2 for usage and 1 for the rest, never a traceback."""

import sys
from collections.abc import Callable
from typing import Any

import click


def run_command(command: click.Command) -> Callable[[], None]:
    """The entry point of a command: runs it and turns `Failure`, OSError and Ctrl-C into their line and exit code."""

    def main(args: list[str] | None = None, **extra: Any) -> None:
        try:
            command.main(args, **extra)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone; nothing is left to say
            raise SystemExit(1) from None
        except OSError as error:
            _exit(f"{error.filename or 'file'}: {error.strerror or error}", 1)
        except ModuleNotFoundError as error:
            _exit(f"{error.name or error} is not installed; pip install 'cfgdiff[train]' brings what training and export need", 1)
        except Exception as error:
            from cfgdiff.runtime.errors import Failure  # it brings NumPy, which --help does without

            if not isinstance(error, Failure):
                raise
            _exit(str(error), error.exit_code)

    return main


def _exit(message: str, code: int) -> None:
    click.echo("Error: " + " ".join(message.split()), err=True)
    raise SystemExit(code)
