"""`cfgdiff engines`: what this machine can run a bundle on."""

from pathlib import Path

import click

from .train import PATH


@click.command(
    epilog="""\b
Examples:
  cfgdiff engines
  cfgdiff engines exported/small"""
)
@click.argument("bundle", type=PATH, required=False)
def engines(bundle: Path | None) -> None:
    """List the engines: which work here for a bundle (by default the packaged model), at which precisions, and how to get the others.

    Each is opened and closed again. A star marks the one that --engine auto takes.
    """
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.survey import survey

    for row in survey(load_bundle(bundle)):
        state = f"works: {', '.join(row.precisions)}" if row.precisions else "does not work here"
        click.echo(f"{'*' if row.auto else ' '} {row.engine:<10}{row.package or 'not installed':<26}{state}")
        for remark in row.remarks:
            click.echo(f"      {remark}")
