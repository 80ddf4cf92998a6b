"""Speed and quality, measured against peers and references. Each module is a command of its own: python -m cfgdiff.benchmarks.NAME."""

import click

from cfgdiff.runtime.errors import Failure


def run(command: click.Command) -> None:
    """Run a module's command; a `Failure` is its one line and its exit code."""
    try:
        command()
    except Failure as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(error.exit_code) from None
