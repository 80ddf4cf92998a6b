"""Numbers in one word, and which flags were typed."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cfgdiff.cli.flags import Count, FilePath, Numbers, typed_flags


@click.command()
@click.option("--pair", type=Numbers("LO,HI as in 1,2", count=2))
@click.option("--whole", default="4,6", type=Numbers("N[,N...] as in 4,6", number=int))
@click.option("--count", type=Count(least=2, most=9))
@click.option("--file", type=FilePath())
@click.option("--quiet", "-q", is_flag=True)
def command(
    pair: tuple[float, float] | None, whole: tuple[int, ...], count: int | None, file: Path | None, quiet: bool
) -> None:
    click.echo(f"{pair} {whole} {sorted(typed_flags(click.get_current_context()).items())}")


def test_lists_become_numbers_and_typed_flags_are_known() -> None:
    assert CliRunner().invoke(command, []).output == "None (4, 6) []\n"
    told = CliRunner().invoke(command, ["--pair", "0.5, 3", "-q"]).output
    assert told == "(0.5, 3.0) (4, 6) [('pair', '--pair'), ('quiet', '--quiet')]\n"


def test_counts_and_paths_are_what_they_say() -> None:
    found = command.make_context("x", ["--count", "9", "--file", "a b"]).params
    assert (found["count"], found["file"]) == (9, Path("a b"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--pair", "1"], "--pair: expected LO,HI as in 1,2, found '1'"),
        (["--pair", "1,2,3"], "--pair: expected LO,HI as in 1,2, found '1,2,3'"),
        (["--whole", "4,6.5"], "--whole: expected N[,N...] as in 4,6, found '4,6.5'"),
        (["--count", "1"], "--count: expected 2 or more, found 1"),
        (["--count", "18446744073709551616"], "--count: expected 2 .. 9, found 18446744073709551616"),
        (["--count", "2.5"], "--count: expected a whole number, found '2.5'"),
        (["--count", "9" * 5000], "--count: expected a whole number, found '" + "9" * 40 + "'"),
        (["--file", ""], "--file: expected a file or folder, found ''"),
        (["--whole", ""], "--whole: expected N[,N...] as in 4,6, found ''"),
    ],
)
def test_what_is_no_such_list_is_a_usage_error_that_names_the_flag(args: list[str], expected: str) -> None:
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 2 and expected in result.output
