"""`cfgdiff-run` as a user calls it: what it writes, what it reports, and one line for every mistake."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.run import main
from cfgdiff.runtime.samplers import SAMPLERS
from cfgdiff.runtime.spacing import SPACINGS

RUN = "from cfgdiff.cli.run import main; main()"


def run(*args: object, code: str = RUN) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


def test_a_folder_of_frogs_with_a_report(tmp_path: Path) -> None:
    result = run(
        "--class",
        "frog",
        "--n",
        10,
        "--steps",
        2,
        "--sampler",
        "ddim",
        "--out",
        tmp_path / "frogs",
        "--json",
        "--seed",
        3,
        "--batch",
        4,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == {
        "n",
        "model",
        "steps",
        "rows",
        "engine",
        "precision",
        "sampler",
        "spacing",
        "guidance",
        "seed",
        "seconds",
    }
    assert (report["sampler"], report["spacing"]) == ("ddim", "uniform")
    assert (report["n"], report["steps"], report["rows"], report["seed"], report["engine"]) == (
        10,
        2,
        30,
        3,
        "cpu",
    )  # the first evaluation is outside the interval
    assert set(report["seconds"]) == {"load", "first", "total"}
    names = sorted(p.name for p in (tmp_path / "frogs").iterdir())
    assert names == [*(f"{i:04d}.png" for i in range(10)), "grid.png"]
    with Image.open(tmp_path / "frogs" / "0009.png") as picture:
        assert picture.size == (32, 32)


def test_guidance_one_costs_half_and_classes_go_round(tmp_path: Path) -> None:
    result = run(
        "--class",
        "cat, dog",
        "--class",
        "ship",
        "--n",
        5,
        "--steps",
        1,
        "--guidance",
        1,
        "--out",
        tmp_path / "a.npz",
        "--json",
    )
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
        (
            ["--sampler", "ddim", "--spacing", "quadratic", "--eta", 0.5, "--steps", 3],
            {"steps": 3, "rows": 6, "spacing": "quadratic"},
        ),
        (["--sampler", "unipc", "--steps", 3], {"steps": 3, "rows": 6, "spacing": "log-snr"}),
    ],
)
def test_samplers_spacings_and_timesteps_are_reported(args: list, expected: dict, tmp_path: Path) -> None:
    result = run("--class", "cat", "--n", 2, "--guidance", 1, *args, "--out", tmp_path / "a.npz", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout).items() >= (expected | {"sampler": args[1]}).items()


def test_help_and_the_list_of_classes() -> None:
    assert run("--list-classes").stdout.split()[6] == "frog"
    assert json.loads(run("--list-classes", "--json").stdout) == run("--list-classes").stdout.split()
    heavy = "import sys; from cfgdiff.cli.run import main\n"
    heavy += "try: main()\nfinally: print({'numpy', 'onnxruntime', 'PIL'} & set(sys.modules))"
    text = run("--help", code=heavy).stdout
    assert text.endswith("set()\n"), "--help is to be there at once"
    assert "cfgdiff-run --class frog --n 64 --out frogs" in text and "--guidance" in text
    assert set(SAMPLERS) | set(SPACINGS) <= set(text.replace(",", " ").replace(".", " ").split())


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--class", "frgo"], 2, "did you mean 'frog'"),
        (["--class", "frog", "--n", 0], 2, "--n: expected 1 or more, found 0"),
        (["--class", "frog", "--steps", 0], 2, "--steps: expected 1 or more"),
        (["--class", "frog", "--guidance", "nan"], 2, "--guidance: expected finite numbers, found nan; 1 is plain"),
        (["--class", "frog", "--sampler", "dmpp"], 2, "choose from ddpm, ddim, dpmpp-2m"),
        (["--class", "frog", "--spacing", "karas"], 2, "did you mean 'karras'"),
        (["--class", "frog", "--timesteps", "9,x"], 2, "--timesteps: expected numbers as in 999,750.5,20, found '9,x'"),
        (["--class", "frog", "--timesteps", "9,10"], 2, "--timesteps: expected falling t in (0, 1000]"),
        (
            ["--class", "frog", "--timesteps", "9,8", "--steps", 3],
            2,
            "--timesteps: expected 3 for 3 evaluations with dpmpp-2m, found 2",
        ),
        (["--class", "frog", "--eta", 1], 2, "--eta: only ddim takes it, found sampler dpmpp-2m"),
        (["--class", "frog", "--engine", "gpu"], 2, "choose from auto, tensorrt, cuda, cpu, openvino"),
        (["--class", "frog", "--seed", "x"], 2, "--seed"),
        (["--class", "frog", "--guidance", "1,x"], 2, "--guidance: expected numbers as in 4 or 1,2,4, found '1,x'"),
        (
            ["--class", "frog", "--guidance-interval", "3"],
            2,
            "--guidance-interval: expected LO,HI as in 0.3,5, found '3'",
        ),
        (["--class", "frog", "--interpolate", "3"], 2, "--interpolate: expected SEED1:SEED2 as in 1:2, found '3'"),
        (
            ["--class", "all", "--interpolate", "3:4"],
            2,
            "--interpolate: expected one class, or two to go between, found 10",
        ),
        (["--class", "frog", "--strength", 0.5], 2, "--strength: is for a picture, found no --from"),
        (["--class", "frog", "--from", "nowhere.png"], 1, "--from nowhere.png: cannot be read as a picture"),
        (["--remake", "nowhere.png"], 1, "nowhere.png: cannot be read as a picture"),
        (
            ["--class", "frog", "--resume", "--out", "a.npz"],
            2,
            "--resume: only a folder or .tar can be resumed, found a.npz",
        ),
        (
            ["--class", "frog", "--frames", 9],
            2,
            "--frames: is for interpolations, found none; add --interpolate SEED1:SEED2",
        ),
        (
            ["--class", "frog", "--interpolate", "1:2", "--seed", 3],
            2,
            "--seed: --interpolate SEED1:SEED2 names the seeds",
        ),
        (
            ["--class", "frog", "--format", "png", "--out", "a.npz"],
            2,
            "--format: is for pictures in a folder or .tar, found --out a.npz",
        ),
        (
            ["--remake", "a.png", "--guidance", 2],
            2,
            "--guidance: has no effect with --remake, which draws what the picture's note says",
        ),
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


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--class", "frog,nope", "--n", 1], 2, "--class: no class 'nope'; choose from airplane"),
        (
            ["--class", "all,frog"],
            2,
            "--class: expected all or names, found all and frog; leave out the one or the others",
        ),
        (
            ["--class", "frog", "--guidance", "1,nan", "--n", 1],
            2,
            "--guidance: expected finite numbers, found 1.0, nan",
        ),
        (
            ["--class", "frog", "--guidance", "1", "--guidance-rescale", 0.5],
            2,
            "--guidance-rescale: has no effect at guidance 1, which is",
        ),
        (
            ["--class", "frog", "--guidance", "1,1", "--guidance-interval", "1,5"],
            2,
            "--guidance-interval: has no effect at guidance 1,",
        ),
        (["--class", "frog", "--spacing", ""], 2, "--spacing: expected a name, found ''; leave it out for the default"),
        (["--class", "frog", "--sampler", ""], 2, "--sampler: expected a name, found ''"),
        (["--class", "frog", "--out", ""], 2, "--out: expected a file or folder, found ''"),
        (
            ["--class", "frog", "--out", "x.tar.gz"],
            2,
            "--out x.tar.gz: cannot write a .gz file; expected the name of a folder, or one",
        ),
        (["--remake", "x.png", "--out", "x.bmp"], 2, "--out x.bmp: cannot write a .bmp file"),
        (
            ["--class", "frog", "--format", "webp", "--out", "a.jpg"],
            2,
            "--format: is for pictures in a folder or .tar, found --out a.jpg",
        ),
        *(
            (["--class", "frog", flag, 2**64], 2, f"{flag}: expected 1 .. ")
            for flag in ("--n", "--steps", "--threads", "--batch")
        ),
        (
            ["--class", "frog", "--interpolate", "1:2", "--frames", 2**64],
            2,
            "--frames: expected 2 .. 1000000, found 18446744073709551616",
        ),
        (
            ["--class", "frog", "--interpolate", "1:2", "--frames", 9999, "--n", 9999],
            2,
            "--frames: expected at most 10000000 pictures in all",
        ),
        (["--class", "frog", "--guidance", "2\n,x"], 2, "--guidance: expected numbers as in 4 or 1,2,4, found '2 ,x'"),
        (["--class", "frog", "--from", os.fsdecode(b"\xff\n.png")], 1, "--from ? .png: cannot be read as a picture"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    args: list,
    code: int,
    expected: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in args])
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert stopped.value.code == code and out == "" and len(lines) == 1 and lines[0].startswith(f"Error: {expected}")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_one_line(copied: Path, tmp_path: Path) -> None:
    (copied / "model.onnx").write_bytes(b"x")
    result = run("--class", "frog", "--model", copied, "--out", tmp_path / "o")
    assert result.returncode == 1 and "model.onnx: damaged" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_row_goes_from_seed_to_seed_and_class_to_class(tmp_path: Path) -> None:
    args = ["--class", "cat,dog", "--interpolate", "1:2", "--frames", 3, "--n", 2, "--steps", 2]
    result = run(*args, "--out", tmp_path / "rows", "--json")
    assert result.returncode == 0 and json.loads(result.stdout)["n"] == 6, result.stderr
    with Image.open(tmp_path / "rows" / "grid.png") as sheet:
        assert sheet.size == (3 * 34 + 2, 2 * 34 + 2)
    run("--class", "dog", "--seed", 2, "--n", 2, "--steps", 2, "--out", tmp_path / "end")
    for row, i in ((2, 0), (5, 1)):
        end, alone = (
            np.asarray(Image.open(tmp_path / file)).astype(int) for file in (f"rows/000{row}.png", f"end/000{i}.png")
        )
        assert np.abs(end - alone).max() <= 1
    result = run("--remake", tmp_path / "rows" / "0004.png", "--out", tmp_path / "again.png")
    assert result.returncode == 0 and "again.png: the same pixels (cpu, float32" in result.stderr
    result = run(*args, "--out", tmp_path / "rows.gif")
    with Image.open(tmp_path / "rows.gif") as moving:
        assert getattr(moving, "n_frames", 0) == 4 and moving.size == (2 * 34 + 2, 34 + 2)  # there and back


def test_a_picture_is_drawn_over_and_made_again_from_its_original_only(tmp_path: Path) -> None:
    run("--class", "ship", "--n", 1, "--steps", 3, "--out", tmp_path / "a")
    source = tmp_path / "a" / "0000.png"
    result = run(
        "--class",
        "frog",
        "--from",
        source,
        "--strength",
        0.4,
        "--n",
        2,
        "--steps",
        6,
        "--out",
        tmp_path / "b",
        "--json",
    )
    assert result.returncode == 0 and 1 <= json.loads(result.stdout)["steps"] < 6, result.stderr
    again = ["--remake", tmp_path / "b" / "0001.png", "--out", tmp_path / "again.png"]
    assert "the same pixels" in run(*again, "--from", source, "--strength", 0.4).stderr
    result = run(*again)
    assert result.returncode == 1 and "found no --from; give the same one" in result.stderr


def test_classes_are_asked_for_by_names_with_commas_too(edited: Callable[..., Path], tmp_path: Path) -> None:
    def rename(tree: dict) -> None:
        tree["class_names"][:3] = ["a,b", "all", "b"]

    named = ["--n", 3, "--steps", 1, "--model", edited(rename), "--out", tmp_path / "a.npz"]
    for words, labels in (
        (["a,b"], [0, 0, 0]),
        (["all"], [1, 1, 1]),
        (["b,cat", "a,b"], [2, 3, 0]),
        (["all,b"], [1, 2, 1]),
    ):
        result = run(*(word for name in words for word in ("--class", name)), *named)
        assert result.returncode == 0, result.stderr
        with np.load(tmp_path / "a.npz") as arrays:
            assert arrays["labels"].tolist() == labels


def test_one_picture_is_made_again_with_the_strength_of_its_note(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "from.png")
    drawn = [
        "--class",
        "frog",
        "--from",
        tmp_path / "from.png",
        "--strength",
        0.3,
        "--n",
        1,
        "--steps",
        3,
        "--out",
        tmp_path / "one.png",
    ]
    assert "1 picture in" in run(*drawn).stderr
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (32, 32)
    again = ["--remake", tmp_path / "one.png", "--from", tmp_path / "from.png", "--out"]
    assert "the same pixels" in run(*again, tmp_path / "two.png").stderr
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    result = run(*again, tmp_path / "two.png", "--strength", 0.5)
    assert (
        result.returncode == 1
        and "--strength: the picture of --remake was made with 0.3, found 0.5; leave it out" in result.stderr
    )


def test_a_killed_tar_is_resumed_by_the_engine_that_drew_it_with_the_same_bytes(tmp_path: Path) -> None:
    args = ["--class", "all", "--n", 40, "--timesteps", 900, "--batch", 4, "--threads", 1, "--resume", "--out"]
    assert run(*args, tmp_path / "whole.tar").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, [*args, tmp_path / "part.tar"])], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and sum(path.stat().st_size for path in tmp_path.glob(".part.tar.*.partial")) < 30_000:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9 and not (tmp_path / "part.tar").exists()
    result = run(*args, tmp_path / "part.tar")
    assert result.returncode == 0 and " were there: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.tar", "whole.tar"]
    assert (tmp_path / "part.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()


def test_killed_at_a_random_moment_and_resumed_it_ends_with_the_same_files(tmp_path: Path) -> None:
    args = [
        "--class",
        "all",
        "--n",
        48,
        "--timesteps",
        900,
        "--guidance-interval",
        "0.1,9",
        "--batch",
        4,
        "--threads",
        1,
    ]
    assert run(*args, "--out", tmp_path / "whole").returncode == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    random, part = np.random.default_rng(), tmp_path / "part"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, [*args, "--out", part, "--resume"])], stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (part.is_dir() and any(part.iterdir())):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
    result = run(*args, "--out", part, "--resume")
    assert result.returncode == 0, result.stderr
    found = {path.name: path.read_bytes() for path in part.iterdir() if not path.name.startswith(".")}
    assert found == whole
