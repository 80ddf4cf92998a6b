"""`cfgdiff-run` as a user calls it: what it writes, what it reports, and one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.run import CountingEngine
from cfgdiff.runtime.samplers import SAMPLERS
from cfgdiff.runtime.spacing import SPACINGS

RUN = "from cfgdiff.cli.run import main; main()"


def run(*args: object, code: str = RUN) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_a_folder_of_frogs_with_a_report(tmp_path: Path) -> None:
    result = run("--class", "frog", "--n", 10, "--steps", 2, "--out", tmp_path / "frogs", "--json", "--seed", 3, "--batch", 4)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == {"n", "steps", "rows", "engine", "precision", "sampler", "spacing", "guidance", "seed", "seconds"}
    assert (report["sampler"], report["spacing"]) == ("dpmpp-2m", "karras")
    assert (report["n"], report["steps"], report["rows"], report["seed"], report["engine"]) == (10, 2, 40, 3, "cpu")
    assert set(report["seconds"]) == {"load", "first", "total"}
    names = sorted(p.name for p in (tmp_path / "frogs").iterdir())
    assert names == [*(f"{i:04d}.png" for i in range(10)), "grid.png"]
    with Image.open(tmp_path / "frogs" / "0009.png") as picture:
        assert picture.size == (32, 32)


def test_guidance_one_costs_half_and_classes_go_round(tmp_path: Path) -> None:
    result = run("--class", "cat, dog", "--class", "ship", "--n", 5, "--steps", 1, "--guidance", 1, "--out", tmp_path / "a.npz", "--json")
    assert json.loads(result.stdout)["rows"] == 5
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["labels"].tolist() == [3, 5, 8, 3, 5] and arrays["pictures"].shape == (5, 32, 32, 3)
    result = run("--class", "all", "--n", 12, "--steps", 1, "--out", tmp_path / "b.npz", "--json")
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays["labels"].tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--sampler", "heun", "--timesteps", "990, 600.5,20"], {"steps": 5, "rows": 10, "spacing": "explicit"}),
        (["--sampler", "ddim", "--spacing", "quadratic", "--eta", 0.5, "--steps", 3], {"steps": 3, "rows": 6, "spacing": "quadratic"}),
        (["--sampler", "unipc", "--steps", 3], {"steps": 3, "rows": 6, "spacing": "log-snr"}),
    ],
)
def test_samplers_spacings_and_timesteps_are_reported(args: list, expected: dict, tmp_path: Path) -> None:
    result = run("--class", "cat", "--n", 2, "--guidance", 1, *args, "--out", tmp_path / "a.npz", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout).items() >= (expected | {"sampler": args[1]}).items()


def test_every_evaluation_is_counted_and_told_to_the_progress_bar() -> None:
    class Silent:
        name, precision, max_batch = "fake", "float32", 8

        def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
            return sample

        def close(self) -> None:
            pass

    told: list[int] = []
    engine = CountingEngine(Silent())
    engine.watch = told.append
    for b, g in ((5, 3), (2, 0)):
        engine.predict(np.zeros((b, 3, 2, 2)), np.zeros(b), np.zeros(b), np.ones(g))
    assert told == [5, 2] and engine.rows == 10


def test_help_and_the_list_of_classes() -> None:
    assert run("--list-classes").stdout.split()[6] == "frog"
    text = run("--help").stdout
    assert "cfgdiff-run --class frog --n 64 --out frogs" in text and "--guidance" in text
    assert set(SAMPLERS) | set(SPACINGS) <= set(text.replace(",", " ").replace(".", " ").split())


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--class", "frgo"], 2, "did you mean 'frog'"),
        (["--class", "frog", "--n", 0], 2, "--n: expected 1 or more, found 0"),
        (["--class", "frog", "--steps", 0], 2, "--steps: expected 1 or more"),
        (["--class", "frog", "--guidance", "nan"], 2, "--guidance: expected a finite number"),
        (["--class", "frog", "--sampler", "dmpp"], 2, "choose from ddpm, ddim, dpmpp-2m"),
        (["--class", "frog", "--spacing", "karas"], 2, "did you mean 'karras'"),
        (["--class", "frog", "--timesteps", "9,x"], 2, "--timesteps: expected T[,T...] as in 999,750.5,20, found '9,x'"),
        (["--class", "frog", "--timesteps", "9,10"], 2, "--timesteps: expected falling t in (0, 1000]"),
        (["--class", "frog", "--timesteps", "9,8", "--steps", 3], 2, "--timesteps: expected 3 for 3 evaluations with dpmpp-2m, found 2"),
        (["--class", "frog", "--eta", 1], 2, "--eta: only ddim takes it, found sampler dpmpp-2m"),
        (["--class", "frog", "--engine", "gpu"], 2, "choose from auto, tensorrt, cuda, cpu, openvino"),
        (["--class", "frog", "--seed", "x"], 2, "--seed"),
        ([], 2, "--class NAME is missing"),
        (["--class", "frog", "--model", "nowhere"], 1, "no bundle there"),
        (["--class", "frog", "--out", "/proc/nothing/x"], 1, "--out"),
    ],
)
def test_every_mistake_is_one_line(args: list, code: int, expected: str, tmp_path: Path) -> None:
    out = [] if "--out" in args else ["--out", tmp_path / "out"]
    result = run(*args, *out)
    assert result.returncode == code and expected in result.stderr and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_one_line(copied: Path, tmp_path: Path) -> None:
    (copied / "model.onnx").write_bytes(b"x")
    result = run("--class", "frog", "--model", copied, "--out", tmp_path / "o")
    assert result.returncode == 1 and "model.onnx: damaged" in result.stderr and len(result.stderr.splitlines()) == 1
