"""The nearest match, and the exit codes."""

from cfgdiff import runtime
from cfgdiff.runtime.errors import BadInput, Failure, nearest


def test_nearest_names_close_words_only() -> None:
    assert nearest("Forg", ["frog", "ship"]) == "; did you mean 'frog'?"
    assert nearest("xyz", ["frog", "ship"]) == ""


def test_exit_codes_and_exports() -> None:
    assert (Failure.exit_code, BadInput.exit_code) == (1, 2)
    assert runtime.__all__ == ["Bundle", "Engine", "generate", "load_bundle", "open_engine"]
