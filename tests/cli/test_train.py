"""`cfgdiff train` without training: presets and settings."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.cli.train import train


def test_dry_run_prints_the_settings() -> None:
    result = CliRunner().invoke(train, ["--preset", "cifar10-paper", "--data", "D", "--dry-run", "--set", "train.batch=7"])
    settings = json.loads(result.stdout)
    assert settings["train"]["batch"] == 7 and settings["objective"]["prediction"] == "eps"


def test_presets_are_listed() -> None:
    assert CliRunner().invoke(train, ["--list-presets"]).stdout.split() == ["cifar10-paper", "cifar10-small", "smoke"]
