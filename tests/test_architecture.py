"""docs/architecture.md names functions with their files and lines; run as a program, this file corrects the lines.

python tests/test_architecture.py
"""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
REFERENCE = re.compile(r"`([\w.]+)` at\s`([\w/]+\.py):(\d+)`")  # `generate` at `runtime/generate.py:63`
REFERENCES = sorted(set(REFERENCE.findall(PAGE.read_text())))


@lru_cache
def lines(file: str) -> dict[str, int]:
    """The line of every function, class and method of a file, by its name; a method's is Class.method."""
    found = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{part.name}": part.lineno for part in node.body if isinstance(part, ast.FunctionDef)
            }
    return found


@pytest.mark.parametrize(("name", "file", "line"), REFERENCES)
def test_a_function_is_where_the_page_says(name: str, file: str, line: str) -> None:
    assert (ROOT / file).is_file() and name in lines(file), (
        f"{PAGE.name}: there is no {name} in {file}; name the one that took its place"
    )
    assert lines(file)[name] == int(line), (
        f"{name} is at {file}:{lines(file)[name]}; run python tests/test_architecture.py"
    )


def test_both_ways_and_all_folders_are_on_the_page() -> None:
    text, files = PAGE.read_text(), {file for _, file, _ in REFERENCES}
    assert {"cli/run.py", "runtime/generate.py", "runtime/samplers.py"} <= files  # a picture
    assert {"trainer/loop.py", "trainer/objective.py", "trainer/unet.py"} <= files  # a training step
    folders = re.findall(r"^(\w+)  +\S", re.search(r"```text\n(cli .+?)```", text, re.DOTALL)[1], re.MULTILINE)  # type: ignore[index]
    assert set(folders) == {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert len(re.findall(r"`[\w/]+\.py:\d+`", text)) == len(REFERENCE.findall(text)), (
        "a line number without a name before it"
    )


def corrected(text: str) -> str:
    """The page with the lines where the functions are now."""
    return REFERENCE.sub(lambda m: m[0].replace(f":{m[3]}`", f":{lines(m[2]).get(m[1], m[3])}`"), text)


def test_lines_are_corrected() -> None:
    wrong = re.sub(r"\.py:\d+`", ".py:1`", PAGE.read_text())
    assert corrected(wrong) == corrected(PAGE.read_text()) != wrong


if __name__ == "__main__":
    PAGE.write_text(corrected(PAGE.read_text()))
