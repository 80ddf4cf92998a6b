"""The packaged model, and copies of it to damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cfgdiff.runtime import Bundle, Engine, load_bundle, open_engine


@pytest.fixture(scope="session")
def packaged() -> Bundle:
    """The packaged bundle."""
    return load_bundle()


@pytest.fixture(scope="session")
def engine(packaged: Bundle) -> Engine:
    """An engine for the packaged bundle."""
    return open_engine(packaged, "cpu", threads=2)


@pytest.fixture
def copied(packaged: Bundle, tmp_path: Path) -> Path:
    """A copy of the packaged bundle."""
    return Path(shutil.copytree(packaged.path, tmp_path / "bundle"))


@pytest.fixture
def edited(copied: Path) -> Callable[[Callable[[dict], None]], Path]:
    """A function that changes the copy's bundle.json and gives its folder."""

    def edit(change: Callable[[dict], None]) -> Path:
        tree = json.loads((copied / "bundle.json").read_text())
        change(tree)
        (copied / "bundle.json").write_text(json.dumps(tree))
        return copied

    return edit
