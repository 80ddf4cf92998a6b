"""Every command and library example of the README and of the pages in docs/, run in order as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click import Command, Group

from cfgdiff.cli.main import group
from cfgdiff.cli.run import command as run

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NAV = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
PAGES = {"README.md": README} | {f"docs/{name}": (ROOT / "docs" / name).read_text() for name in NAV}
COMMAND = re.compile(r"^    ((?:cfgdiff|cfgdiff-run) .+)$", re.MULTILINE)
FENCED = re.compile(r"^```(.*)\n((?:.*\n)+?)```$", re.MULTILINE)
# A command may be on several pages and is run once: the README's first, then those of the pages in the site's order.
COMMANDS: dict[str, str] = {}
for _page, _text in PAGES.items():
    for _command in COMMAND.findall(_text):
        COMMANDS.setdefault(_command, _page)
ENTRY = {
    "cfgdiff": "from cfgdiff.cli.main import main; main()",
    "cfgdiff-run": "from cfgdiff.cli.run import main; main()",
}


@pytest.fixture
def data(write_cifar: Callable[..., np.ndarray], tmp_path: Path) -> Path:
    """A CIFAR-10 of 200 random pictures."""
    write_cifar(tmp_path / "data", 40)
    return tmp_path / "data"


def test_the_commands_do_what_they_say(data: Path, tmp_path: Path) -> None:
    assert len(COMMANDS) >= 23 and len(set(COMMANDS.values())) >= 6
    for command, page in COMMANDS.items():
        name, *args = shlex.split(command.replace("DATA", str(data)))
        result = subprocess.run(
            [sys.executable, "-c", ENTRY[name], *args], cwd=tmp_path, capture_output=True, text=True, env=os.environ
        )
        assert result.returncode == 0, f"{page}: {command}: {result.stderr}"
    assert len(list((tmp_path / "frogs").glob("0*.png"))) == 64 and (tmp_path / "frogs" / "grid.png").is_file()
    assert (tmp_path / "smoke.png").is_file() and (tmp_path / "exported" / "smoke" / "bundle.json").is_file()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page that are in this language; commands have none."""
    return [block for info, block in FENCED.findall(text) if info == language]


def test_the_flags_of_other_commands_exist() -> None:
    """Commands in fenced blocks are not run, for they take long or need a GPU; their names and flags are looked up."""
    lines = "".join(block for text in PAGES.values() for block in blocks(text, "")).replace("\\\n", "").splitlines()
    checked = 0
    for name, *words in map(shlex.split, filter(None, lines)):
        if name == "torchrun":
            name, *words = words[words.index("cfgdiff") :]
        if name == "python" and words[:1] == ["-m"]:
            assert find_spec(words[1]) is not None, words
        elif name in ENTRY:
            command: Command = run if name == "cfgdiff-run" else group
            while isinstance(command, Group) and words and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            command.make_context(name, words)  # raises for an unknown flag
            checked += 1
    assert checked >= 8


def test_the_library_examples_run(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = {page: blocks(text, "python") for page, text in PAGES.items()}
    exec(examples["README.md"][0], {})
    assert (tmp_path / "frog.png").is_file()
    exec(examples["docs/sampling.md"][0], {})
    assert capsys.readouterr().out == "0 (8, 32, 32, 3)\n"
    # Run in tests/server/test_http_openai.py, tests/export/test_triton_client.py and tests/test_datasets_page.py.
    elsewhere = [len(examples[f"docs/{page}.md"]) for page in ("serving", "triton", "datasets")]
    assert min(elsewhere) and sum(map(len, examples.values())) == 2 + sum(elsewhere), "an example without a test"


def test_the_readme_is_short_and_leads_everywhere() -> None:
    assert len(README.splitlines()) <= 130
    linked = {link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}
    assert all((ROOT / link).exists() for link in linked)
    assert {f"docs/{name}" for name in NAV} - {"docs/index.md", "docs/api.md"} <= linked
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(NAV)


def test_the_test_command_is_the_one_of_ci() -> None:
    assert "python -m pytest -q" in README
    assert 'python" -m pytest -q' in (ROOT / ".ci" / "run").read_text()


def test_pictures_shown_exist() -> None:
    shown = [
        (ROOT / page).parent / path
        for page, text in PAGES.items()
        for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    ]
    assert len(shown) >= 4 and all(path.is_file() for path in shown)


def test_anchors_exist() -> None:
    """MkDocs checks the links between pages; those from the README are checked here."""
    for page, anchor in re.findall(r"\]\((docs/\w+\.md)#([\w-]+)\)", README):
        headings = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
