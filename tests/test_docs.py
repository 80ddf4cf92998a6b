"""The site builds without a warning and loads nothing from outside; versions in pages, workflow and hooks are right."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read with tomllib (Python 3.11) or tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOADED = re.compile(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)|<link[^>]+stylesheet[^>]+href=\"(https?:[^\"]+)")


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the docs extra: pip install 'cfgdiff[docs]'")
def test_the_site_builds_strictly_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    (tmp_path / "path" / "cfgdiff").mkdir(parents=True)  # as a normal install lays it out, for the API page
    for package in ("runtime", "trainer"):
        (tmp_path / "path" / "cfgdiff" / package).symlink_to(ROOT / package)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name: path.read_text() for path in (tmp_path / "site").rglob("index.html")}
    assert len(pages) >= 11 and not [found for text in pages.values() for found in LOADED.findall(text)]
    names = {"generate", "draw", "open_engine", "load_bundle", "register", "Callback", "PictureSet"}
    documented = {name for name in names if re.search(rf'id="cfgdiff\.[\w.]*\b{name}"', pages["api"])}
    assert documented == names
    assert "@register" in pages["plugins"], "the example is not shown"


def test_the_changelog_names_the_format_versions() -> None:
    from cfgdiff.runtime.bundle import FORMAT_VERSION

    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"| bundle | `format_version` in `bundle.json` | {FORMAT_VERSION} |" in text
    from cfgdiff.runtime.shards import VERSION

    assert f"| shard of a large set | `version` in `shard-*.json` | {VERSION} |" in text
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    from cfgdiff.trainer.checkpoint import FORMAT

    assert f"| checkpoint | `format` in `state.json` | {FORMAT} |" in text
    assert f"## {PROJECT['version']}" in text


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    """Without onnxruntime-gpu, which takes onnxruntime's place, the pages' packages and developers' tools."""
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)\.\*$", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))
    groups = PROJECT["optional-dependencies"]
    asked = [
        *PROJECT["dependencies"],
        *(entry for name in groups if name not in ("cuda", "docs") for entry in groups[name]),
    ]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(asked), re.MULTILINE))
    tools = {"pytest", "pytest-xdist", "ruff", "mypy", "build"}
    assert pinned == {name: v if "." in v else f"{v}.0" for name, v in least.items() if name not in tools}


def test_the_workflow_runs_the_pythons_of_the_classifiers() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    named = [entry.rsplit(" ", 1)[1] for entry in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", entry)]
    pythons = re.search(r"python: \[(.+)\]", workflow)
    assert pythons and re.findall(r"[\d.]+", pythons[1]) == named
    assert PROJECT["requires-python"] == f">={named[0]}" and f'python: "{named[0]}"' in workflow
    assert "- run: .ci/run" in workflow and "constraint: .ci/lowest.txt" in workflow


def test_the_hooks_are_the_checks_of_ci() -> None:
    hooks, ci = (ROOT / ".pre-commit-config.yaml").read_text(), (ROOT / ".ci" / "run").read_text()
    entries = re.findall(r"entry: (.+)", hooks)
    assert {entry.split()[0] for entry in entries} == {"ruff", ".ci/types", "python"}
    assert (
        os.access(ROOT / ".ci" / "types", os.X_OK)
        and ".ci/types" in ci
        and 'ruff" check' in ci
        and 'ruff" format' in ci
    )
