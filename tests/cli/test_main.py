"""`cfgdiff` from a folder of pictures to a bundle that runs; its mistakes in one line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
from cfgdiff.runtime import Bundle
from cfgdiff.trainer.weights import load_model

MAIN, RUN = ("from cfgdiff.cli.main import main; main()", "from cfgdiff.cli.run import main; main()")
TINY = [
    f"--set={s}"
    for s in (
        "train.pictures=64",
        "train.batch=8",
        "train.image_size=16",
        "network.channels=16",
        "network.attention=[]",
    )
]


def call(code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of pictures."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.jpg")
    return tmp_path / "data"


def test_train_export_info_run(pictures: Path, tmp_path: Path) -> None:
    steps = [
        (MAIN, "train", "--preset", "smoke", "--data", pictures, "--out", tmp_path / "run", *TINY),
        (MAIN, "export", tmp_path / "run", "--out", tmp_path / "bundle", "--steps", 3, "--guidance", 2),
        (MAIN, "info", tmp_path / "bundle", "--data", pictures),
        (RUN, "--model", tmp_path / "bundle", "--class", "dog", "--n", 2, "--out", tmp_path / "dogs"),
        (
            MAIN,
            "train",
            "--preset",
            "smoke",
            "--init",
            tmp_path / "bundle",
            "--data",
            pictures,
            "--out",
            tmp_path / "more",
            *TINY,
        ),
        (MAIN, "train", "--resume", tmp_path / "run", "--data", pictures, "--set", "train.pictures=96"),
    ]
    results = []
    for code, *args in steps:
        results.append(call(code, *args))
        assert results[-1].returncode == 0, results[-1].stderr
    found = re.findall(
        r"test_loss.*?([0-9.]+)\n", results[2].stdout
    )  # what the trainer measured, and what the bundle gives
    assert float(found[0]) == pytest.approx(float(found[1]), abs=2e-3) and "test loss" in results[0].stderr
    assert re.search(r"rate, measured: [0-9.]+ bits a dimension", results[2].stdout)
    assert (
        "guidance 2.0" in results[2].stdout
        and "pictures_seen" in results[2].stdout
        and str(tmp_path) not in results[2].stdout
    )
    assert sorted(p.name for p in (tmp_path / "dogs").iterdir()) == ["0000.png", "0001.png", "grid.png"]
    assert (tmp_path / "run" / "checkpoints" / "000000096").is_dir()
    origin = load_model(tmp_path / "more").provenance["initialised_from"]
    assert (
        origin["pictures_seen"] == 64
        and origin["command"].startswith("cfgdiff train --preset smoke")
        and "errors" not in origin
    )


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["train", "--preset", "smok", "--data", "D", "--out", "O"], 2, "did you mean 'smoke'"),
        (["train", "--data", "D"], 2, "--preset NAME"),
        (["train", "--preset", "smoke", "--data", "D"], 2, "--out RUN is missing"),
        (["train", "--preset", "smoke", "--data", "D", "--out", "O", "--set", "train.batch=0"], 2, "train.batch"),
        (["train", "--preset", "smoke", "--data", "D", "--out", "O"], 1, "no such file or folder"),
        (["train", "--resume", "R", "--data", "D"], 1, "no checkpoint there"),
        (["export", "R"], 1, "no checkpoint there"),
        (["export", "R", "--guidance-interval", "3,1"], 2, "LO < HI"),
        (
            ["export", "R", "--guidance-interval", "3,x"],
            2,
            "--guidance-interval: expected LO,HI as in 0.3,5, found '3,x'",
        ),
        (["export", "R", "--no-tensorrt", "--sm", "89"], 2, "--sm: is for TensorRT engines, found --no-tensorrt"),
        (
            ["export", "--from-bundle", "--plugin", "x.py"],
            2,
            "--plugin: is for networks of a checkpoint, found --from-bundle",
        ),
        (["ema", "R", "--width", "x"], 2, "--width: expected numbers as in 0.05,0.1, found 'x'"),
        (
            ["eval", "--shard", "1/2", "--store"],
            2,
            "--store: is for the last call, that makes the report, found --shard",
        ),
        (["info", "B"], 1, "no bundle there"),
        (["ema", "R", "--width", "0.1"], 1, "no checkpoint there"),
        (["ema", "R", "--width", "0.5"], 2, "--width: expected 0.005 .. 0.28 of the run's length, found 0.5"),
        (["info", "--data", "D"], 1, "no such file or folder"),
        (["info", "--grid", "seen.png"], 2, "--grid: is about a data set, found no --data"),
        (["info", "--data", "D", "--grid", "seen.jpg"], 2, "--grid seen.jpg: expected a name that ends in .png"),
        (
            ["train", "--preset", "smoke", "--data", "D", "--out", "O", "--set", "callbacks.ema={widths: [a]}"],
            2,
            "option 'widths'",
        ),
        (["train", "--preset", "smoke", "--data", "D", "--out", "O", "--set", "train.batch=1\n2"], 2, "on one line"),
        (
            ["train", "--preset", "smoke", "--data", "D", "--out", "O", "--set", "train.image_size=65"],
            2,
            "multiple of 4 for this network",
        ),
    ],
)
def test_every_mistake_is_one_line(args: list, code: int, expected: str, tmp_path: Path) -> None:
    result = call(MAIN, *[str(tmp_path / a) if a in {"D", "O", "R", "B"} else a for a in args])
    assert result.returncode == code and expected in result.stderr and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1 and list(tmp_path.iterdir()) == []


def test_a_broken_picture_is_named_before_training(pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "3.jpg").write_bytes(b"nonsense")
    result = call(MAIN, "train", "--preset", "smoke", "--data", pictures, "--out", tmp_path / "run", *TINY)
    assert result.returncode == 1 and "3.jpg" in result.stderr and not (tmp_path / "run").exists()
    result = call(
        MAIN, "train", "--preset", "smoke", "--data", pictures, "--out", tmp_path / "run", *TINY, "--skip-broken"
    )
    assert result.returncode == 0 and (tmp_path / "run" / "checkpoints").is_dir()


def test_info_shows_what_training_on_a_data_set_would_read(pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "bad.jpg").write_bytes(b"no picture")
    (pictures / "dog" / "notes.txt").write_text("a dog")
    Image.new("L", (64, 64), 200).save(pictures / "dog" / "20.png")
    result = call(MAIN, "info", "--data", pictures, "--image-size", 16, "--grid", tmp_path / "seen.png")
    assert result.returncode == 0, result.stderr
    assert "39 pictures in 2 classes to train on; 2 more are held out, the same ones every time" in result.stdout
    counts = {
        name: (int(n), int(held))
        for name, n, held in re.findall(r"^(cat|dog) +(\d+) +(\d+)$", result.stdout, re.MULTILINE)
    }
    assert {name: n + held for name, (n, held) in counts.items()} == {"cat": 20, "dog": 21}
    for line in (
        "- sizes: 24x20 (40), 64x64 (1)",
        "- modes: RGB (40), L (1)",
        "- 1 picture that cannot be read, left out: ",
        "left out, for example dog/notes.txt",
        "- 40 pictures not square: cropped to the middle, for example cat/0.jpg",
        "- the network sees 16x16 in 3 channels",
    ):
        assert line in result.stdout
    assert "test_loss" not in result.stdout and "cifar10-small" not in result.stdout
    with Image.open(tmp_path / "seen.png") as seen:
        assert seen.size == (2 * 18 + 2, 8 * 18 + 2)
        assert any(np.asarray(seen)[2:18, 20:36].any(axis=(0, 1)))


def test_info_of_a_bundle_refuses_data_of_other_classes(pictures: Path, packaged: Bundle) -> None:
    result = call(MAIN, "info", packaged.path, "--data", pictures)
    assert result.returncode == 1 and "has the classes cat, dog" in result.stderr and "Traceback" not in result.stderr


def test_ema_measures_on_data_of_its_own_classes_alone(pictures: Path, tmp_path: Path) -> None:
    trained = call(
        MAIN,
        "train",
        "--preset",
        "smoke",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        *TINY,
        "--set=callbacks.preview=null",
    )
    assert trained.returncode == 0, trained.stderr
    found = call(MAIN, "ema", tmp_path / "run", "--width", "0.05,0.1", "--data", pictures)
    assert found.returncode == 0, found.stderr
    assert [
        float(loss) > 0
        for loss in re.findall(r"^width 0\.\d+, test loss ([0-9.]+): export", found.stdout, re.MULTILINE)
    ] == [
        True,
        True,
    ]
    assert (tmp_path / "run" / "ema-0.05" / "state.json").is_file()
    (pictures / "dog").rename(pictures / "wolf")
    other = call(MAIN, "ema", tmp_path / "run", "--width", "0.2", "--data", pictures)
    assert other.returncode == 1 and "has the classes cat, wolf; the run has cat, dog" in other.stderr
    assert not (tmp_path / "run" / "ema-0.2").exists()
