"""The table of a profiled run: its phases make up the time, and nothing is written."""

import re
from pathlib import Path

import pytest

from cfgdiff.trainer.build import new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.profiling import PHASES, profile_steps


@pytest.mark.filterwarnings("ignore")  # the profiler's own, which differ from version to version
def test_the_phases_make_up_the_time(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(make_config(tiny_tree), load_data(picture_folder, 16), tmp_path / "run", "profile")
    table = profile_steps(run, steps=3, warm_up=1)
    shares = {name: float(share) for name, share in re.findall(r"^(\w+) +[0-9.]+ s +([0-9.]+)%$", table, re.MULTILINE)}
    assert list(shares) == list(PHASES)
    assert min(shares["forward"], shares["backward"], shares["update"]) > 0 and 60 < sum(shares.values()) <= 101
    assert "convolution" in table.split("the ten operators")[1]
    assert run.step == 4 and not (tmp_path / "run").exists()
