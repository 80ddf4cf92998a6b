"""The examples in the runtime's docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import cfgdiff.runtime

MODULES = [f"cfgdiff.runtime.{entry.name}" for entry in pkgutil.iter_modules(cfgdiff.runtime.__path__)]


@pytest.mark.parametrize("name", ["cfgdiff.runtime", *MODULES])
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert found.failed == 0
    if name in ("cfgdiff.runtime", "cfgdiff.runtime.generate"):
        assert found.attempted >= 3
