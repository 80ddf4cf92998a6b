"""A note holds all that a picture depends on: the job made of it draws the same."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.job import Job, from_note, read_edit
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.generate import Blend

SETTINGS = {
    "seed": 5, "steps": 7, "sampler": "ddim", "spacing": "karras", "timesteps": None, "eta": 0.5, "interval": (0.1, 9.0), "rescale": 0.3,
    "threshold": 0.99,
}  # fmt: skip


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.mark.parametrize("blend", [None, Blend(8, ["dog", "dog", "cat"], [0.0, 0.5, 1.0])])
def test_a_note_and_back(packaged: Bundle, picture: Path, blend: Blend | None) -> None:
    edit, edit_note = read_edit(packaged, picture, 0.4, picture)
    job = Job(["cat", "ship", "dog"], [0, 1, 2], [1.0, 2.0, 3.0], SETTINGS, blend, edit, edit_note)
    note = job.note(1, job.plan(packaged))
    again = from_note(note, edit, edit_note)
    wanted, got = job.arguments([1]), again.arguments([0])
    assert {k: v for k, v in got.items() if v is not None} == {k: v for k, v in wanted.items() if v is not None}
    assert again.note(0, again.plan(packaged)) == note


def test_a_picture_of_guidance_1_among_others_can_be_drawn_alone(packaged: Bundle) -> None:
    """What an interval is for are the others: for it alone `generate` would refuse one."""
    job = Job(["cat", "ship"], [0, 1], [1.0, 2.0], {"seed": 5, "steps": 7, "sampler": "ddim", "interval": (0.1, 9.0), "rescale": 0.3})
    again = from_note(job.note(0, job.plan(packaged)), None, None)
    assert again.plan(packaged).guidance.weights == (1.0,)
    assert not {"interval", "rescale"} & (again.arguments([0]).keys() | job.arguments([0]).keys())
    unguided = Job(["cat"], [0], [1.0], {"seed": 5, "interval": (0.1, 9.0)})  # where the plan takes it, it chooses fitted steps
    assert unguided.arguments([0])["interval"] == (0.1, 9.0)
    assert job.arguments([1])["interval"] == job.arguments([0, 1])["interval"] == (0.1, 9.0)


def test_a_seed_of_64_bits_is_noted_and_drawn_again(packaged: Bundle) -> None:
    blend = Blend(2**64 - 2, ["cat"], [0.5])
    job = Job(["cat"], [0], [1.0], {"seed": 2**64 - 1, "steps": 7, "sampler": "ddim"}, blend)
    note = json.loads(json.dumps(job.note(0, job.plan(packaged))))
    again = from_note(note, None, None).arguments([0])
    assert (note["seed"], note["to"]["seed"]) == (again["seed"], again["blend"].seed) == (2**64 - 1, 2**64 - 2)


def test_defaults_are_noted_as_what_they_were(packaged: Bundle) -> None:
    job = Job(["cat"], [3], None, {"seed": 0, "steps": None, "sampler": None})
    note = job.note(0, job.plan(packaged))
    other = dataclasses.replace(packaged, defaults=dataclasses.replace(packaged.defaults, steps=3, guidance=9.0, sampler="ddpm"))
    again = from_note(note, None, None)
    assert note["steps"] == packaged.defaults.steps and again.note(0, again.plan(other)) == note


def test_what_a_note_lacks_is_said(packaged: Bundle, picture: Path) -> None:
    with pytest.raises(Failure, match="its note lacks 'sampler'"):
        from_note({"class": "cat", "seed": 1, "steps": 2}, None, None)
    edit, edit_note = read_edit(packaged, picture, None, None)
    job = Job(["cat"], [0], None, {"seed": 0}, None, edit, edit_note)
    with pytest.raises(Failure, match="found no --from; give the same one"):
        from_note(job.note(0, job.plan(packaged)), None, None)


def test_an_edit_is_read_to_the_models_size(packaged: Bundle, picture: Path, tmp_path: Path) -> None:
    edit, note = read_edit(packaged, picture, None, None)
    assert edit is not None and edit.picture.shape == (32, 32, 3) and edit.strength == 0.5 and edit.mask is None
    edit, note = read_edit(packaged, picture, None, picture)
    assert edit is not None and edit.mask is not None and edit.mask.shape == (32, 32) and edit.strength == 1.0
    assert note is not None and set(note) == {"picture", "strength", "mask"}
    with pytest.raises(BadInput, match="--mask: is for a picture"):
        read_edit(packaged, None, None, picture)
    with pytest.raises(BadInput, match="--strength: is for a picture"):
        read_edit(packaged, None, 0.5, None)
    (tmp_path / "x.png").write_text("nonsense")
    with pytest.raises(Failure, match=r"--mask .*x\.png: cannot be read as a picture"):
        read_edit(packaged, picture, None, tmp_path / "x.png")
