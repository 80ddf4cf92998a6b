"""The nearest match, and the exit codes."""

from importlib import metadata

import numpy as np
import pytest

from cfgdiff import runtime
from cfgdiff.runtime.errors import BadInput, Failure, named, nearest, whole_number


def test_nearest_names_close_words_only() -> None:
    assert nearest("Forg", ["frog", "ship"]) == "; did you mean 'frog'?"
    assert nearest("xyz", ["frog", "ship"]) == ""


def test_exit_codes_and_exports() -> None:
    assert (Failure.exit_code, BadInput.exit_code) == (1, 2)
    names = "BadInput Blend Bundle Edit Engine Failure Plan Request Stage __version__ draw generate load_bundle"
    names += " open_engine resolve sample to_images"
    assert sorted(runtime.__all__) == names.split() and all(hasattr(runtime, name) for name in runtime.__all__)
    assert (
        runtime.__version__ == metadata.version("cfgdiff")
        and runtime.BadInput is BadInput
        and runtime.Failure is Failure
    )


def test_names_are_taken_in_any_case_and_exactly_first() -> None:
    assert named("x", "thing", "KARRAS", ["karras", "log-snr"]) == "karras"
    assert named("x", "thing", "Cat", ["cat", "Cat", "CAT"]) == "Cat"
    with pytest.raises(BadInput, match=r"^x: thing 'cAt' may be cat or Cat; write it as it stands there$"):
        named("x", "thing", "cAt", ["cat", "Cat", "dog"])
    with pytest.raises(BadInput, match=r"^x: no thing 'dgo'; choose from cat, dog; did you mean 'dog'\?$"):
        named("x", "thing", "dgo", ["cat", "dog"])


def test_whole_numbers_are_pythons_or_numpys() -> None:
    assert whole_number("n", 3) == whole_number("n", np.int64(3)) == 3 and isinstance(
        whole_number("n", np.int64(3)), int
    )
    for wrong in (0, 2.5, 2.0, "3", None, float("nan"), np.array([1, 2])):
        with pytest.raises(BadInput, match=r"^n: expected 1 or more, a whole number, found "):
            whole_number("n", wrong)
    with pytest.raises(BadInput, match=r"^n: expected at most 9, found 10$"):
        whole_number("n", 10, most=9)
