"""Prompts in words."""

import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.server.prompts import classes_of

KNOWN = ["frog", "ship", "butterfly", "bus", "great white shark, white shark", "7 up"]


@pytest.mark.parametrize(
    ("prompt", "n", "expected"),
    [
        ("frog", None, ["frog"]),
        ("FROGS", 2, ["frog", "frog"]),
        ("a frog", 1, ["frog"]),
        ("3 frogs, 1 ship", None, ["frog"] * 3 + ["ship"]),
        ("3 frogs and a ship", 4, ["frog"] * 3 + ["ship"]),
        ("2x butterflies; buses", None, ["butterfly"] * 2 + ["bus"]),
        ("frog, ship", 3, ["frog", "ship", "frog"]),
        ("Great white shark, White shark", None, ["great white shark, white shark"]),
        ("7 up", None, ["7 up"]),
        ("all", 7, [*KNOWN, "frog"]),
        ("2 all", None, [name for name in KNOWN for _ in range(2)]),
    ],
)
def test_a_prompt_counts_classes(prompt: str, n: int | None, expected: list[str]) -> None:
    assert classes_of(prompt, n, KNOWN, 100) == expected


@pytest.mark.parametrize(
    ("prompt", "n", "message"),
    [
        ("", None, "prompt: expected a class as in 'frog', found ''"),
        ("forg", None, r"prompt: no class 'forg'.*did you mean 'frog'"),
        ("3 frogs", 2, "n: the prompt counts 3 pictures, found 2"),
        ("101 frogs", None, "prompt: expected at most 100, found 101"),
        ("0 frogs", None, "prompt: expected 1 or more"),
        ("frog", 101, "n: expected at most 100, found 101"),
        (",", None, "prompt: no class ','"),
        ("9" * 30 + " frogs", None, "prompt: no class"),
    ],
)
def test_a_mistake_names_its_field(prompt: str, n: int | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        classes_of(prompt, n, KNOWN, 100)
