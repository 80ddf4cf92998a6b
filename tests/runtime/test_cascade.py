"""A cascade's pictures are those of its networks one after the other, from noise of (seed, picture, stage)."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages import STEPS

from cfgdiff.runtime import (
    Blend,
    Bundle,
    Edit,
    Engine,
    Request,
    Stage,
    draw,
    generate,
    load_bundle,
    open_engine,
    resolve,
    sample,
)
from cfgdiff.runtime.cascade import Cascade
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.noise import CONDITION, normals
from cfgdiff.runtime.notes import model_note, note_of, request_of
from cfgdiff.runtime.upscale import condition

CLASSES = ["a", "b", "c", "a", "b"]


def engines_of(bundle: Bundle) -> Engine:
    return open_engine(bundle, "cpu", "float32", threads=1)


@pytest.fixture(scope="module")
def opened(cascade: Bundle) -> Engine:
    return engines_of(cascade)


def test_stages_share_no_noise_with_the_base_and_steps_none_with_the_condition() -> None:
    shape, i = (1, 4, 4), np.arange(3)
    draws = [normals(7, i, step, shape, stage).tobytes() for stage in range(3) for step in (0, 1, 2, CONDITION)]
    assert len(set(draws)) == len(draws)
    assert normals(7, i, 1, shape).tobytes() == draws[1]  # the base's is what it was
    key = np.array([7, 2], np.uint64)
    words = np.random.Philox(key=key, counter=[0, 0, 2, 5]).random_raw(2)
    u = (words >> np.uint64(11)) * 2.0**-53
    assert normals(7, i, 5, shape, 2)[2, 0, 0, 0] == np.float32(
        np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])
    )


def test_a_cascade_draws_what_its_networks_draw_one_after_the_other(cascade: Bundle, opened: Cascade) -> None:
    drawn = draw(cascade, CLASSES, opened, seed=3)
    assert drawn.shape == (5, 32, 32, 3)
    below = draw(cascade.models[0], CLASSES, opened.engine, seed=3)
    for stage, engine in zip(cascade.stages, opened.stages, strict=True):
        low, below = below, draw(stage, CLASSES, engine, seed=3, low=below)
        assert below.shape[1] == 2 * low.shape[1]
    assert np.array_equal(drawn, below)


def test_the_first_call_of_a_stage_gets_the_picture_below_with_its_noise(cascade: Bundle, opened: Cascade) -> None:
    """By the formulas, apart from the loop."""
    calls = list[tuple[np.ndarray, ...]]()

    class Spy:
        name, precision, max_batch = "spy", "float32", 64

        def predict(self, *inputs: np.ndarray) -> np.ndarray:
            calls.append(inputs)
            return opened.stages[1].predict(*inputs)

    low = draw(cascade.up_to(16), ["b", "c"], Cascade([opened.engine, opened.stages[0]]), seed=9)
    stage = cascade.stages[1]
    next(generate(Spy(), stage, ["b", "c"], seed=9, low=low, condition_noise=125.0))
    x, _, label, w, picture, noise = calls[0]
    expected = condition(
        (low / 127.5 - 1).transpose(0, 3, 1, 2), normals(9, np.arange(2), CONDITION, (3, 16, 16), 2), 125.0,
        stage.schedule, 2,
    )  # fmt: skip
    np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-5)
    assert np.array_equal(x, normals(9, np.arange(2), 0, (3, 32, 32), 2)) and (noise == 125).all()
    assert label.tolist() == [1, 2] and w.tolist() == [1.5, 1.5] and len(calls) == STEPS[2]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_picture_depends_on_no_other(cascade: Bundle, opened: Engine, batch: int) -> None:
    whole = draw(cascade, CLASSES, opened, seed=1)
    parts = np.concatenate([part for _, part in generate(opened, cascade, CLASSES, seed=1, batch=batch)])
    assert np.abs(parts.astype(int) - whole).max() <= 2  # float32 rounds by the batch
    alone = draw(cascade, ["c"], opened, seed=1, indices=[2])
    assert np.abs(alone[0].astype(int) - whole[2]).max() <= 2


def test_each_network_draws_the_whole_batch_before_the_next(cascade: Bundle, opened: Cascade) -> None:
    sizes = list[tuple[int, int]]()

    class Noting:
        precision, max_batch = "float32", 64

        def __init__(self, inner: Engine) -> None:
            self.inner, self.name = inner, inner.name

        def predict(self, *inputs: np.ndarray) -> np.ndarray:
            sizes.append((len(inputs[0]), inputs[0].shape[2]))
            return self.inner.predict(*inputs)

    noting = Cascade([Noting(opened.engine), *map(Noting, opened.stages)])
    seen = list[tuple[int, int]]()
    plan = resolve(cascade, Request(["a"] * 5, batch=3))
    for _ in sample(noting, plan, lambda first, x0: seen.append((first, x0.shape[2]))):
        pass
    steps = [8] * STEPS[0] + [16] * STEPS[1] + [32] * STEPS[2]
    assert sizes == [(n, size) for n in (3, 2) for size in steps]
    assert seen == [(first, size) for first in (0, 3) for size in steps] and plan.evaluations == len(steps)
    assert plan.rows == 5 * 2 * sum(STEPS)  # guided, so two rows an evaluation


def test_up_to_takes_as_many_stages_as_a_size_needs(cascade: Bundle, opened: Cascade, packaged: Bundle) -> None:
    assert [len(cascade.up_to(size).stages) for size in (8, 16, 32)] == [0, 1, 2]
    with engines_of(cascade.up_to(8)) as alone:
        assert not isinstance(alone, Cascade)
        assert np.array_equal(draw(cascade.up_to(8), ["a"], alone), draw(cascade.models[0], ["a"], opened.engine))
    assert packaged.up_to(32) == packaged == packaged.models[0]
    with pytest.raises(BadInput, match="size: cascade draws pictures of 8, 16, 32, found 64; take one of these"):
        cascade.up_to(64)


def test_each_stage_has_its_own_settings(cascade: Bundle, opened: Cascade) -> None:
    plan = resolve(cascade, Request(["a"], 5, stages=[Stage(2, 1.0, "heun", noise=30), Stage(guidance=3.0)]))
    assert [p.steps for p in (plan, *plan.stages)] == [5, 2, STEPS[2]]
    assert [p.weights[0] for p in plan.stages] == [1.0, 3.0] and plan.stages[0].course.sampler == "heun"
    note = note_of(plan, 0)
    assert note["stages"] == [
        {"steps": 2, "guidance": 1.0, "sampler": "heun", "noise": 30.0},
        {"steps": STEPS[2], "guidance": 3.0, "sampler": "ddim", "noise": 100.0},
    ]
    again = resolve(cascade, request_of(json.loads(json.dumps(note))))
    assert np.array_equal(
        np.concatenate([part for _, part in sample(opened, plan)]),
        np.concatenate([part for _, part in sample(opened, again)]),
    )
    made = model_note(cascade, opened)["stage_models"]
    assert [entry["engine"] for entry in made] == ["cpu", "cpu"] and made[0]["model_sha256"] != made[1]["model_sha256"]


def test_interpolations_end_in_the_pictures_of_their_seeds(cascade: Bundle, opened: Engine) -> None:
    blend = Blend(2, ["b"] * 3, [0.0, 0.5, 1.0])
    frames = draw(cascade, ["a"] * 3, opened, seed=1, indices=[0] * 3, blend=blend)
    ends = [draw(cascade, [name], opened, seed=seed)[0] for name, seed in (("a", 1), ("b", 2))]
    assert np.abs(frames[[0, 2]].astype(int) - ends).max() <= 2
    assert min(np.abs(frames[1].astype(int) - end).mean() for end in ends) > 3


EDIT = Edit(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edit": EDIT}, "edit: cascade is a cascade, which edits no pictures; take its base alone"),
        ({"stages": [Stage()]}, "stages: expected 2, one for each of cascade, found 1"),
        ({"stages": [Stage(steps=0), Stage()]}, "stage_steps: expected 1 or more, a whole number, found 0"),
        ({"stages": [Stage(noise=501), Stage()]}, "stage_noise: cascade-1 was trained for 0 .. 500, found 501"),
        ({"stages": [Stage(), Stage(sampler="dim")]}, "stage_sampler: no sampler 'dim'"),
        ({"low": np.zeros((1, 4, 4, 3), np.uint8)}, "low: cascade draws from noise alone and enlarges nothing"),
        ({"condition_noise": 3.0}, "condition_noise: cascade draws from noise alone"),
    ],
)
def test_what_a_cascade_cannot_do_is_named(cascade: Bundle, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        resolve(cascade, Request(["a"], **settings))
    assert str(error.value).startswith(message)


def test_a_stage_needs_smaller_pictures_and_a_cascade_its_engines(cascade: Bundle, opened: Cascade) -> None:
    stage = cascade.stages[0]
    with pytest.raises(BadInput, match=r"low: cascade-1 enlarges .* expected uint8 \(1, 8, 8, 3\), found none"):
        resolve(stage, Request(["a"]))
    with pytest.raises(BadInput, match=r"found float64 \(1, 8, 8, 3\)"):
        resolve(stage, Request(["a"], low=np.zeros((1, 8, 8, 3))))
    low = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(BadInput, match="edit: cascade-1 enlarges pictures and edits none"):
        resolve(stage, Request(["a"], low=low, edit=Edit(np.zeros((16, 16, 3), np.uint8))))
    with pytest.raises(
        BadInput, match="engine: expected 2 for the stages, found 0 beside cpu; open it with open_engine"
    ):
        next(generate(opened.engine, cascade, ["a"]))


def test_a_bundle_of_one_network_is_resolved_as_it_was(packaged: Bundle) -> None:
    plan = resolve(packaged, Request(["frog"]))
    assert plan.stages == () and plan.low is None and plan.evaluations == plan.steps
    assert "stages" not in note_of(plan, 0)


def _pop(tree: dict) -> None:
    tree["stages"].pop(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(stages="stage-1"), "'stages' is not as expected, a list of folders in it"),
        (lambda tree: tree.update(stages=["../cascade"]), "'stages' is not as expected"),
        (lambda tree: tree.update(stages=["stage-9"]), "stage-9: no bundle there"),
        (lambda tree: tree["stages"].reverse(), "stage-2: expected super-resolution stage 1, found another model"),
        (_pop, "stage-2: expected super-resolution stage 1, found another model"),
        (lambda tree: tree.update(class_names=["a", "b"]), "metadata|is of 3 classes"),
    ],
)
def test_a_damaged_cascade_is_named(
    cascade: Bundle, tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    folder = Path(shutil.copytree(cascade.path, tmp_path / "cascade"))
    tree = json.loads((folder / "bundle.json").read_text())
    change(tree)
    (folder / "bundle.json").write_text(json.dumps(tree))
    with pytest.raises(Failure, match=message) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


def test_a_stage_of_another_cascade_is_refused(cascade: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cascade.path, tmp_path / "cascade"))
    shutil.rmtree(folder / "stage-1")
    shutil.copytree(folder / "stage-2", folder / "stage-1")
    tree = json.loads((folder / "stage-1" / "bundle.json").read_text())
    tree["condition"]["stage"] = 1
    (folder / "stage-1" / "bundle.json").write_text(json.dumps(tree))
    with pytest.raises(Failure, match=r"stage-1: expected pictures of 16x16 in the classes of .*cascade, found others"):
        load_bundle(folder)
    assert dataclasses.replace(cascade, stages=()).up_to(8)
