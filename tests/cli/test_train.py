"""`cfgdiff train`: presets and settings, and a whole run whose data set and callback come from a plugin file."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.cli.main import train  # as the shell has it: its errors name flags
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.checkpoint import find_checkpoint
from cfgdiff.trainer.weights import load_model


def test_dry_run_prints_the_settings() -> None:
    result = CliRunner().invoke(
        train, ["--preset", "cifar10-paper", "--data", "D", "--dry-run", "--set", "train.batch=7"]
    )
    settings = json.loads(result.stdout)
    assert settings["train"]["batch"] == 7 and settings["objective"]["prediction"] == "eps"


def test_dry_run_knows_the_names_of_parts() -> None:
    result = CliRunner().invoke(train, ["--preset", "smoke", "--data", "D", "--dry-run", "--set", "network.name=u-net"])
    assert isinstance(result.exception, BadInput) and "did you mean 'unet'" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "smok", "--dry-run"], "--preset: no preset 'smok'; choose from .*; did you mean 'smoke'"),
        (["--set", "train.batches=3", "--dry-run"], r"--set train\.batches: .*; did you mean 'batch'"),
        (["--set", "nonsense", "--dry-run"], r"--set nonsense: expected section\.key=value"),
        (
            ["--set", "network.name=u-net", "--dry-run"],
            r"--set network\.name: no network 'u-net'; .*did you mean 'unet'",
        ),
        (["--set", "callbacks.ema={width: 1}", "--dry-run"], r"--set callbacks\.snapshots: .* no option 'width'"),
        (["--out", "run", "--processes", "3", "--data", "cifar10"], "--processes: expected at most one for each GPU"),
        (
            ["--out", "run", "--data", "DATA"],
            r"--data DATA: cannot read DATA.cat.1\.png .*, or leave it out with --skip-broken",
        ),
    ],
)
def test_errors_of_the_trainer_name_the_flags(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cfgdiff.trainer.launch.gpus", lambda: 1)
    for name in ("cat", "dog"):
        (tmp_path / "DATA" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "DATA" / name / "0.png")
    (tmp_path / "DATA" / "cat" / "1.png").write_bytes(b"nothing")
    result = CliRunner().invoke(train, [*([] if "--preset" in words else ["--preset", "smoke"]), *words])
    assert isinstance(result.exception, Failure) and re.match(message, str(result.exception)), result.exception
    assert type(result.exception) is (Failure if "DATA" in words else BadInput)


@pytest.mark.parametrize(
    ("processes", "under_torchrun", "message"),
    [
        ("0", False, "expected a number from 1 on, or auto; found '0'"),
        ("all", False, "expected a number from 1 on, or auto; found 'all'"),
        ("auto", True, "torchrun has started this one: drop one of the two"),
    ],
)
def test_processes_are_refused(
    processes: str, under_torchrun: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    result = CliRunner().invoke(train, ["--preset", "smoke", "--data", "D", "--processes", processes, "--dry-run"])
    assert result.exit_code == 2 and message in result.stderr


def test_bad_input_is_found_before_processes_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfgdiff.trainer.launch.launch", lambda *_: pytest.fail("started"))
    words = ["--preset", "smoke", "--out", str(tmp_path / "run"), "--processes", "2"]
    for more, message in (
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--set", "train.batch=7"], "train.batch=7: must be a multiple of 2"),
    ):
        result = CliRunner().invoke(train, [*words, *more])
        assert isinstance(result.exception, Failure) and message in str(result.exception)
    assert CliRunner().invoke(train, [*words, "--data", "nowhere", "--dry-run"]).exit_code == 0


def test_presets_are_listed() -> None:
    names = ["cifar10-16", "cifar10-guided", "cifar10-paper", "cifar10-small", "cifar10-turbo", "small-128", "small-64"]
    names += ["smoke", "smoke-sr", "sr-16-32", "sr-32-64", "sr-64-128"]
    assert CliRunner().invoke(train, ["--list-presets"]).stdout.split() == names


SHAPES = Path(__file__).parents[2] / "examples" / "shapes.py"
TINY = [
    "network.channels=16",
    "network.head_channels=16",
    "train.image_size=16",
    "train.pictures=64",
    "train.batch=16",
    "train.checkpoint_seconds=1",
]


def cfgdiff(folder: Path, *args: str, program: str = "main") -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own, in `folder`."""
    code = f"from cfgdiff.cli.{program} import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, capture_output=True, text=True, env=environment
    )


def train_shapes(folder: Path, *settings: str) -> "subprocess.CompletedProcess[str]":
    chosen = [word for setting in [*TINY, *settings] for word in ("--set", setting)]
    return cfgdiff(
        folder, "train", "--preset", "smoke", "--plugin", str(SHAPES), *chosen, "--data", ".", "--out", "run"
    )


def test_a_run_made_of_a_plugin_goes_through_to_pictures(tmp_path: Path) -> None:
    trained = train_shapes(tmp_path, "data.name=shapes", "data.options={count: 100}", "callbacks.norms={steps: 2}")
    assert trained.returncode == 0, trained.stderr
    assert "90 pictures in 2 classes" in trained.stderr and "done: 64 pictures, test loss" in trained.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "weight_norm" in line] == [2, 4]
    assert lines[-1]["test_loss"] > 0 and any("gflops" in line for line in lines)
    assert [file.name for file in (tmp_path / "run" / "previews").iterdir()] == ["000000064.png"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert (
        "--plugin shapes.py"
        in json.loads((tmp_path / "run" / "checkpoints" / "000000064" / "state.json").read_text())["command"]
    )
    dry = cfgdiff(
        tmp_path,
        "train",
        "--resume",
        "run",
        "--plugin",
        str(SHAPES),
        "--data",
        ".",
        "--set",
        "train.pictures=96",
        "--dry-run",
    )
    assert json.loads(dry.stdout)["train"]["pictures"] == 96 and json.loads(dry.stdout)["network"]["channels"] == 16
    assert not (tmp_path / "run" / "checkpoints" / "000000096").exists(), "a dry run trains nothing"
    exported = cfgdiff(tmp_path, "export", "run", "--steps", "2")
    assert exported.returncode == 0, exported.stderr
    made = cfgdiff(
        tmp_path, "--model", "exported/run", "--class", "circle", "--n", "2", "--out", "circles", program="run"
    )
    assert made.returncode == 0 and len(list((tmp_path / "circles").glob("0*.png"))) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.name=shape",
            "choose from cifar10, folder, huggingface, npz, shapes, webdataset, or load a plugin; "
            "did you mean 'shapes'?",
        ),
        ("callbacks.norm={}", "no callback 'norm'"),
        ("optimiser.name=sgd", "no optimiser 'sgd'; choose from adamw, muon"),
        ("data={name: shapes}", "--set data={name: shapes}: expected section.key=value"),
    ],
)
def test_unknown_parts_are_usage_errors(setting: str, message: str, tmp_path: Path) -> None:
    found = train_shapes(tmp_path, "data.name=shapes", setting)
    assert found.returncode == 2 and message in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    found = train_shapes(tmp_path, "data.name=shapes")
    assert (
        found.returncode == 1
        and "--out run: cannot be written (File exists)" in found.stderr
        and "Traceback" not in found.stderr
    )


@pytest.mark.filterwarnings("ignore")  # the profiler's own, which differ from version to version
def test_a_profile_shows_the_phases_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(
        "data.npz",
        pictures=np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    chosen = [word for setting in TINY for word in ("--set", setting)]
    found = CliRunner().invoke(train, ["--preset", "smoke", *chosen, "--data", "data.npz", "--profile"])
    assert found.exit_code == 0, found.output
    assert re.search(r"^backward +[0-9.]+ s +[0-9.]+%$", found.output, re.MULTILINE) and "pictures/s" in found.output
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


LITTLE = [
    "network.channels=8",
    "network.head_channels=8",
    "network.multipliers=[1]",
    "network.attention=[]",
    "train.image_size=8",
]
LITTLE += [
    "train.pictures=16",
    "train.batch=8",
    *(f"callbacks.{name}=null" for name in ("preview", "tensorboard", "validation")),
]


def little(*words: str) -> str:
    """`cfgdiff train` in this process; what it printed."""
    result = CliRunner().invoke(train, [*words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def little_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data.npz and the run of two steps that was trained on it, from there."""
    monkeypatch.chdir(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez("data.npz", pictures=pictures, labels=np.arange(20) % 2)
    little(
        "--preset",
        "smoke",
        "--data",
        "data.npz",
        "--out",
        "run",
        *(word for setting in LITTLE for word in ("--set", setting)),
    )
    return tmp_path


def test_a_run_remembers_its_data(little_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = find_checkpoint(little_run / "run") / "state.json"
    assert json.loads(newest.read_text())["data"] == str(little_run / "data.npz")
    assert str(little_run) not in json.dumps(load_model(little_run / "run").provenance), (
        "bundles hold no paths of this machine"
    )
    (little_run / "elsewhere").mkdir()
    monkeypatch.chdir(little_run / "elsewhere")
    assert "done: 24 pictures" in little("--resume", str(little_run / "run"), "--set", "train.pictures=24")
    assert "done: 32 pictures" in little("--resume", str(little_run / "run"), "--set", "train.pictures=32")
    (little_run / "data.npz").rename(little_run / "moved.npz")
    with pytest.raises(
        Failure, match=r"--resume .*run: its data .*data\.npz are no longer there; give them with --data"
    ):
        little("--resume", str(little_run / "run"), "--set", "train.pictures=40")
    assert "done: 40 pictures" in little("--resume", "../run", "--set", "train.pictures=40", "--data", "../moved.npz")
    assert json.loads((find_checkpoint(little_run / "run") / "state.json").read_text())["data"] == str(
        little_run / "moved.npz"
    )


def test_a_checkpoint_from_before_runs_remembered_their_data_is_gone_on_with(
    little_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (little_run / "run" / "checkpoints").glob("*/state.json"):
        state = json.loads(file.read_text())
        del state["data"]
        file.write_text(json.dumps(state))
    assert "done: 24 pictures" in little("--resume", "run", "--set", "train.pictures=24", "--data", "data.npz")
    assert json.loads((find_checkpoint(little_run / "run") / "state.json").read_text())["data"] == str(
        little_run / "data.npz"
    )


def test_a_run_that_ended_before_its_first_checkpoint_can_be_started_again(little_run: Path) -> None:
    shutil.rmtree(little_run / "run" / "checkpoints")
    (little_run / "run" / "checkpoints" / ".000000008.partial").mkdir(parents=True)
    settings = [word for setting in LITTLE for word in ("--set", setting)]
    assert "done: 16 pictures" in little("--preset", "smoke", "--data", "data.npz", "--out", "run", *settings)
