"""How commands fail: one line on standard error, exit code 2 for usage and 1 for the rest, never a traceback."""

import functools
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

# The parameters of commands for those of the library that have another name.
ALIASES = {
    "edit": "source", "edit.picture": "source", "edit.strength": "strength", "edit.mask": "mask",
    "blend": "interpolate", "blend.seed": "interpolate", "blend.shares": "interpolate", "note": "remake",
    "width": "widths",
}  # fmt: skip
QUOTED = "`([a-z_.]+)`"


def with_flags(text: str, context: click.Context) -> str:
    """An error of the library in the words of a command line.

    The parameter that it begins with, and those in backquotes, become flags of the command. The flag whose path it
    begins with is put before it.
    """
    options = [option for option in context.command.params if isinstance(option, click.Option)]
    flags = {str(option.name): max(option.opts, key=len) for option in options}
    flags |= {parameter: flags[name] for parameter, name in ALIASES.items() if name in flags}

    def replaced(pattern: str) -> str:
        return re.sub(pattern, lambda match: flags.get(match[match.lastindex or 0], match[0]), text)

    for name, flag in flags.items():
        path = context.params.get(name)
        if isinstance(path, Path) and text.startswith(f"{path}: "):
            return f"{flag} {replaced(QUOTED)}"
    return replaced(rf"^([a-z_.]+)(?=: )|{QUOTED}")


def run_command(command: click.Command) -> Callable[[], None]:
    """The entry point of a command, in which `Failure`, OSError, Ctrl-C and SIGTERM become a line and an exit code."""
    for part in _commands(command):
        if part.callback is not None:
            part.callback = _naming_flags(part.callback)

    def main(args: list[str] | None = None, standalone_mode: bool = True, **extra: Any) -> None:
        try:
            with _sigterm_unwinds():
                code = command.main(args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.message = one_line(error.message)  # type: ignore[misc] # it may quote the user's words
            error.show()
            raise SystemExit(error.exit_code) from None
        except click.Abort:
            click.echo("Aborted!", err=True)
            raise SystemExit(1) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone
            raise SystemExit(1) from None
        except OSError as error:
            _exit(f"{error.filename or 'file'}: {error.strerror or error}", 1)
        except ModuleNotFoundError as error:
            _exit(f"{error.name or error} is not installed; pip install 'cfgdiff[train]' brings what training needs", 1)
        except Exception as error:
            if not _is_failure(error):
                raise
            _exit(str(error), error.exit_code)  # type: ignore[attr-defined]
        if standalone_mode:
            raise SystemExit(code if isinstance(code, int) else 0)

    return main


def _commands(command: click.Command) -> Iterator[click.Command]:
    """The command, and those of a group."""
    yield command
    for part in getattr(command, "commands", {}).values():
        yield from _commands(part)


def _naming_flags(callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback`, whose errors name flags; see `with_flags`."""

    @functools.wraps(callback)
    def call(*args: Any, **flags: Any) -> Any:
        try:
            return callback(*args, **flags)
        except Exception as error:
            if _is_failure(error):
                raise type(error)(with_flags(str(error), click.get_current_context())) from error
            raise

    return call


def _is_failure(error: Exception) -> bool:
    module = sys.modules.get("cfgdiff.runtime.errors")  # where nothing has imported it, nothing has raised its errors
    return module is not None and isinstance(error, module.Failure)


def one_line(text: str) -> str:
    """`text` on one line, with ? for what a name that is not UTF-8 holds."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends the process with its usual code, 143, by an exception, so half-written files are removed."""

    def unwind(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # another handles it
        return
    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {one_line(message)}", err=True)
    raise SystemExit(code)
