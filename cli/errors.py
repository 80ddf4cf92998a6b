"""How commands fail: one line on standard error, exit code 2 for usage and 1 for the rest, never a traceback."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click


def run_command(command: click.Command) -> Callable[[], None]:
    """The entry point of a command: runs it and turns `Failure`, OSError, Ctrl-C and SIGTERM into their line and exit code."""

    def main(args: list[str] | None = None, standalone_mode: bool = True, **extra: Any) -> None:
        try:
            with _sigterm_unwinds():
                code = command.main(args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.message = one_line(error.message)  # type: ignore[misc] # it may quote what the user typed
            error.show()
            raise SystemExit(error.exit_code) from None
        except click.Abort:
            click.echo("Aborted!", err=True)
            raise SystemExit(1) from None
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
        if standalone_mode:
            raise SystemExit(code if isinstance(code, int) else 0)

    return main


def one_line(text: str) -> str:
    """`text` on one line, with ? for what a name that is not UTF-8 holds."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends the process with its usual code, 143, but as an exception does: what is half-written is removed."""

    def unwind(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # it is another's to handle
        return
    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {one_line(message)}", err=True)
    raise SystemExit(code)
