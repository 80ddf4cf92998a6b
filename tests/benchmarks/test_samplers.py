"""Each cell against its own pictures, and the command on a small bundle."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cfgdiff.benchmarks import samplers
from cfgdiff.benchmarks.samplers import (
    COMPARED,
    cells_table,
    compare,
    gaussian,
    parse_samplers,
    possible,
)  # fmt: skip
from cfgdiff.cli.bench import bench
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.fitted import Fitted

RNG = np.random.default_rng(0)


def test_lists_are_read_or_refused(packaged: Bundle) -> None:
    for wrong in ("", "0", "4,", "a", "1001"):
        made = CliRunner().invoke(bench, ["samplers", "--steps", wrong])
        assert made.exit_code == 2 and "--steps: expected numbers from 1 to 1000" in made.output
    assert parse_samplers("heun,ddim,heun", packaged) == ["heun", "ddim"]
    assert parse_samplers(None, packaged) == list(COMPARED)
    assert parse_samplers(None, replace(packaged, fitted={})) == [name for name in COMPARED if name != "fitted"]
    with pytest.raises(BadInput, match=r"--samplers: no sampler 'uinpc'; choose from .*; did you mean 'unipc'"):
        parse_samplers("ddim,uinpc", packaged)


def test_only_what_a_sampler_can_do_is_drawn(packaged: Bundle) -> None:
    steps = Fitted((999.0, 500.0, 0.0), ((0.0, 1.0, 0.0, 0.0),) * 2, packaged.defaults.guidance)
    bundle = replace(packaged, fitted={2: steps})
    assert possible(bundle, ["fitted", "heun", "ddpm"], [2, 3], False) == [("fitted", 2), ("heun", 2), ("heun", 3)]
    assert possible(bundle, ["fitted", "ddpm"], [2, 3], True) == [("fitted", 2), ("ddpm", 2), ("ddpm", 3)]
    with pytest.raises(BadInput, match="none of fitted, ddpm can be compared at --steps of 4; ddpm needs --frechet"):
        possible(bundle, ["fitted", "ddpm"], [4], False)


def test_each_cell_is_its_own_pictures_against_the_teachers() -> None:
    teacher = RNG.integers(0, 250, (6, 4, 4, 3), dtype=np.uint8)

    def draw(sampler: str, steps: int, n: int) -> np.ndarray:
        return teacher[:n] + np.uint8(steps)

    def features(pictures: np.ndarray) -> np.ndarray:
        return pictures.mean((1, 2))

    mean, spread = gaussian(features(teacher))
    references = {"the teacher": (mean, spread), "others": (mean + 4, spread)}
    errors, distances = compare(draw, [("ddim", 2), ("ddim", 4), ("ddpm", 2)], teacher, features, references)
    assert errors == pytest.approx({("ddim", 2): (2 / 127.5) ** 2, ("ddim", 4): (4 / 127.5) ** 2})
    assert list(distances) == ["the teacher", "others"]
    assert distances["the teacher"] == pytest.approx(
        {("ddim", 2): 3 * 2**2, ("ddim", 4): 3 * 4**2, ("ddpm", 2): 3 * 2**2}
    )
    assert distances["others"] == pytest.approx(
        {("ddim", 2): 3 * 2**2, ("ddim", 4): 0, ("ddpm", 2): 3 * 2**2}, abs=1e-9
    )
    assert compare(draw, [("ddim", 2)], teacher, None, {})[1] == {}
    assert cells_table(["ddim", "ddpm"], [2, 4], distances["the teacher"], ".3f").splitlines() == [
        "| sampler | 2      | 4      |",
        "| ------- | ------ | ------ |",
        "| ddim    | 12.000 | 48.000 |",
        "| ddpm    | 12.000 | -      |",
    ]  # fmt: skip


def call(*args: object) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, on one thread: NumPy's eigenvalues are slow on several where others are at
    work."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "from cfgdiff.cli.main import main; main()",
        "bench",
        "samplers",
        *map(str, args),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)


def read(lines: list[str]) -> dict[str, list[str]]:
    """The cells of a Markdown table by its first column."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ") and "| ---" not in line
    ]
    return {row[0]: row[1:] for row in rows}


def test_the_command_compares_all_samplers(small_bundle: Bundle, drawn_weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    np.savez(
        tmp_path / "real.npz", pictures=rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8), labels=np.arange(30) % 3
    )
    args = [
        small_bundle.path,
        "--steps",
        "2,6",
        "--n",
        4,
        "--teacher-steps",
        30,
        "--threads",
        2,
        "--frechet",
        drawn_weights,
    ]
    args += ["--data", tmp_path / "real.npz", "--out", tmp_path / "table.md"]
    made = call(*args)
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == made.stdout
    head, *parts = made.stdout.split("\nFréchet distance to ")
    assert [part.split(",")[0] for part in parts] == ["real pictures", "the teacher"]
    (line,) = (line for line in head.splitlines() if line.startswith("Teacher to real pictures: Fréchet distance "))
    teachers = float(line.split()[-1].rstrip("."))
    errors, to_real, to_teacher = (read(part.splitlines()) for part in (head, *parts))
    for found in (errors, to_real, to_teacher):
        assert list(found) == ["sampler", *(name for name in COMPARED if name != "fitted")]
        assert found["sampler"] == ["2", "6"] and "-" not in found["heun"]
    assert errors["ddpm"] == ["-", "-"] and "-" not in to_teacher["ddpm"]
    assert float(errors["dpmpp-2m"][1]) < float(errors["dpmpp-2m"][0])
    assert float(to_teacher["dpmpp-2m"][1]) < float(to_teacher["dpmpp-2m"][0])
    near, far = (abs(float(cell) - teachers) for cell in reversed(to_real["dpmpp-2m"]))
    assert near < 0.1 * teachers and near < far / 2


def test_the_packaged_models_pictures_come_closer_with_more_evaluations() -> None:
    args = ["--steps", "2,5", "--samplers", "dpmpp-2m", "--n", "2", "--teacher-steps", "12", "--threads", "2"]
    made = CliRunner().invoke(bench, ["samplers", *args], catch_exceptions=False)
    few, more = read(made.stdout.splitlines())["dpmpp-2m"]
    assert 1e-6 < float(more) < float(few) < 1 and "Fréchet" not in made.stdout


def test_the_teacher_is_checked_against_many_evaluations(
    small_bundle: Bundle, drawn_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "MOST", 200)
    args = [
        str(small_bundle.path),
        "--steps",
        "2",
        "--samplers",
        "ddim",
        "--n",
        "2",
        "--threads",
        "2",
        "--check-teacher",
        "3",
    ]
    found = []
    for steps in ("3", "40"):
        made = CliRunner().invoke(
            bench,
            ["samplers", *args, "--teacher-steps", steps, "--frechet", str(drawn_weights)],
            catch_exceptions=False,
        )
        (line,) = (
            line
            for line in made.stdout.splitlines()
            if line.startswith("Teacher to 200 evaluations of ddim, 3 pictures")
        )
        found.append([float(number) for number in re.findall(r"(?:error|features) (\d[\d.e+-]*\d)", line)])
        assert list(read(made.stdout.splitlines())) == ["sampler", "ddim"]
    assert all(0 < more < few / 10 for few, more in zip(*found, strict=True)) and len(found[0]) == 2


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    for wrong, code, reason in (
        ([tmp_path], 1, "no bundle there"),
        (["--steps", "3", "--teacher-steps", "3"], 2, "--teacher-steps: expected more than --steps"),
        (["--frechet", tmp_path / "absent"], 1, "--frechet: "),
        (["--data", tmp_path], 2, "add --frechet"),
        (["--out", tmp_path / "absent" / "table.md"], 1, "--out: "),
    ):
        failed = CliRunner().invoke(bench, ["samplers", *map(str, wrong)])
        assert isinstance(failed.exception, Failure) and failed.exception.exit_code == code
        assert reason in str(failed.exception) and "\n" not in str(failed.exception)
    made = call(tmp_path)
    assert made.returncode == 1 and len(made.stderr.splitlines()) == 1 and made.stderr.startswith("Error: "), (
        made.stderr
    )
