"""From a teacher to a network of few steps, and pictures from it; and which packaged model a request gets."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cfgdiff.cli.main import group
from cfgdiff.cli.run import command
from cfgdiff.runtime import Request, load_bundle, open_engine, resolve
from cfgdiff.runtime.errors import BadInput

TINY = ["--set", "network.channels=16", "--set", "network.multipliers=[1]", "--set", "train.image_size=16"]
TINY += ["--set", "train.batch=8", "--set", "train.pictures=48", "--set", "callbacks.tensorboard=null"]
FOLDED = ["--set", "network.name=guided-unet"]
FEW = [*FOLDED, "--set", "objective.name=trajectory", "--set", "objective.options={steps: [1, 2, 4], teacher_steps: 4}"]


def cfgdiff(*args: object) -> Result:
    result = CliRunner().invoke(group, [str(arg) for arg in args], catch_exceptions=True)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's pictures of three classes; a teacher's run and bundle; a folded run; a few-step run and bundle."""
    root, rng = tmp_path_factory.mktemp("turbo"), np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (root / "data" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / "data" / name / f"{i}.png")
    smoke = ["train", "--preset", "smoke", "--data", root / "data", *TINY]
    cfgdiff(*smoke, "--out", root / "small")
    cfgdiff("export", root / "small", "--no-tensorrt", "--steps", 3, "--out", root / "teacher")
    guide = ["--set", "objective.name=distilled-guidance"]
    cfgdiff(*smoke, *FOLDED, *guide, "--teacher", root / "teacher", "--out", root / "folded")
    cfgdiff(*smoke, *FEW, "--teacher", root / "folded", "--out", root / "few")
    cfgdiff("export", root / "folded", "--no-tensorrt", "--steps", 3, "--guidance", 2, "--out", root / "folded-bundle")
    cfgdiff("export", root / "few", "--no-tensorrt", "--out", root / "turbo")
    return root


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pictures_of_few_steps_take_a_row_an_evaluation(steps: int, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures.npz"
    args = ["--model", folder / "turbo", "--class", "all", "--n", 6, "--steps", steps, "--out", out, "--json"]
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["rows"], report["steps"], report["model"]) == (6 * steps, steps, "turbo")
    with np.load(out) as arrays:
        assert arrays["pictures"].shape == (6, 16, 16, 3)
        assert len(np.unique(arrays["pictures"].reshape(6, -1), axis=0)) == 6


def test_the_bundle_says_what_the_network_is_and_is_certified(folder: Path) -> None:
    turbo, guided = load_bundle(folder / "turbo"), load_bundle(folder / "folded-bundle")
    assert (turbo.few_steps, turbo.guidance_input, sorted(turbo.fitted)) == (True, (1.0, 8.0), [1, 2, 4])
    assert (guided.few_steps, guided.guidance_input, guided.fitted) == (False, (1.0, 8.0), {})
    assert guided.provenance["initialised_from"]["initialised_from"] is None  # the teacher, trained from scratch
    assert turbo.provenance["initialised_from"]["initialised_from"]["pictures_seen"] == 48
    for bundle in (turbo, guided):
        certificate = bundle.variant("float32").certificate
        assert certificate is not None
        assert certificate.passed


def test_w_may_differ_by_picture_and_acts() -> None:
    bundle = load_bundle("cifar10-turbo")
    with open_engine(bundle, "cpu") as engine:
        t, label = np.full(3, bundle.fitted[1].timesteps[0], np.float32), np.zeros(3, np.int64)
        x = np.stack([np.random.default_rng(0).standard_normal((3, 32, 32))] * 3).astype(np.float32)
        predictions = engine.predict(x, t, label, np.array([8, 1], np.float32))
    assert np.abs(predictions[0] - predictions[1]).mean() > 0.1 * np.abs(predictions[1]).mean()
    np.testing.assert_allclose(predictions[1], predictions[2], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "steps: turbo was trained for its own steps, 1, 2, 4 in number"),
        ({"steps": 4, "sampler": "heun"}, "sampler: turbo was trained"),
        ({"steps": 4, "spacing": "karras"}, "spacing: turbo was trained"),
        ({"timesteps": [900.0, 20.0]}, "timesteps: turbo was trained"),
        ({"steps": 2, "eta": 0.5}, "eta: turbo was trained"),
        ({"guidance": 9.0}, "guidance: turbo was trained for 1 .. 8, found 9"),
        ({"guidance": [1.0, 0.5]}, "guidance: turbo was trained for 1 .. 8, found 0.5"),
        ({"interval": (0.1, 3.0)}, "interval: guidance is inside the network of turbo"),
        ({"rescale": 0.5}, "rescale: guidance is inside the network of turbo"),
    ],
)
def test_what_it_was_not_trained_for_is_refused(folder: Path, settings: dict, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        resolve(load_bundle(folder / "turbo"), Request(["ant", "bee"], **settings))


@pytest.mark.parametrize("flags", [["--guidance", 9], ["--steps", 3], ["--guidance-interval", "0.1,3"]])
def test_export_refuses_defaults_that_it_was_not_trained_for(flags: list, folder: Path, tmp_path: Path) -> None:
    args = ["export", folder / "few", "--no-tensorrt", "--out", tmp_path / "out", *flags]
    result = CliRunner().invoke(group, [str(arg) for arg in args])
    assert str(result.exception).startswith(("guidance:", "steps:", "interval:", "--guidance", "--steps"))
    assert not (tmp_path / "out").exists()


def test_previews_of_a_run_take_its_own_steps(folder: Path) -> None:
    assert list((folder / "few" / "previews").glob("*.png"))


@pytest.mark.parametrize("words", [["fit-steps"], ["bench"], ["bench", "samplers"]])
def test_what_needs_other_steps_is_refused_before_the_work(words: list, folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(group, [*words, str(folder / "turbo")])
    assert "turbo: was trained for its own steps" in str(result.exception)
    assert sorted(load_bundle(folder / "turbo").fitted) == [1, 2, 4]


def test_a_teacher_must_be_named_and_exist(folder: Path, tmp_path: Path) -> None:
    smoke = ["train", "--preset", "smoke", "--data", folder / "data", *TINY, *FEW, "--out", tmp_path / "run"]
    for args, message in (([], "objective.teacher: expected a run"), (["--teacher", tmp_path / "no"], "no checkpoint")):
        result = CliRunner().invoke(group, [str(arg) for arg in [*smoke, *args]])
        assert result.exit_code in (1, 2)
        assert message in str(result.exception)


def ran(*args: object) -> dict:
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    report: dict = json.loads(result.stdout)
    return report


def test_the_default_model_is_the_one_of_few_steps_unless_a_flag_needs_many(tmp_path: Path) -> None:
    asked = ["--class", "frog", "--n", 2, "--json", "--out"]
    usual = ran(*asked, tmp_path / "a")
    assert usual["model"] == "cifar10-turbo"
    assert usual["rows"] <= 2 * 4
    assert ran(*asked, tmp_path / "b", "--sampler", "ddim", "--steps", 2)["model"] == "cifar10-small"
    source = tmp_path / "a" / "0000.png"
    assert ran(*asked, tmp_path / "c", "--from", source, "--steps", 4)["model"] == "cifar10-small"
    again = CliRunner().invoke(command, ["--remake", str(source), "--out", str(tmp_path / "again.png")])
    assert "the same pixels" in again.stderr
    result = CliRunner().invoke(command, ["--class", "frgo", "--n", "2", "--out", str(tmp_path / "d")])
    assert "frog" in str(result.exception)


def test_packaged_models_go_by_name_and_are_listed() -> None:
    assert load_bundle("cifar10-turbo").few_steps
    assert load_bundle("cifar10-small").path == load_bundle().path
    lines = cfgdiff("models").stdout.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["cifar10-small", "cifar10-turbo"]
