"""A note holds all that a picture depends on: the job made of it draws the same."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.job import Job, from_note, noted_strength, read_edit
from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.generate import Blend
from cfgdiff.runtime.images import encoded

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


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1}, {"index": 2**63}, {"index": 1.0}, {"index": True}, {"index": "1"}, {"seed": 2**64}, {"seed": -1}, {"seed": None},
        {"steps": 0}, {"steps": 2**64}, {"steps": 2.5}, {"class": 3}, {"class": ["cat"]}, {"sampler": None}, {"guidance": float("nan")},
        {"guidance": float("inf")}, {"guidance": 10**400}, {"guidance": 2**64}, {"guidance": [1]},
        {"spacing": 5}, {"eta": "x"}, {"rescale": None},
        {"threshold": []}, {"timesteps": 5}, {"timesteps": []}, {"timesteps": ["x"]}, {"interval": [1]}, {"interval": 3},
        {"interval": [float("nan"), 1.0]}, {"to": 5}, {"to": {}}, {"to": {"class": "cat", "seed": 1, "share": "x"}},
        {"to": {"class": "cat", "seed": -1, "share": 0.5}},
    ],
)  # fmt: skip
def test_nonsense_in_a_note_is_named(packaged: Bundle, change: dict[str, Any]) -> None:
    job = Job(["cat"], [0], None, {"seed": 0})
    note = job.note(0, job.plan(packaged))
    assert from_note(note, None, None).indices == [0]
    with pytest.raises(
        Failure, match=rf"^--remake: its note says {next(iter(change))} is .*; expected a picture .* as written by cfgdiff-run"
    ):
        from_note(note | change, None, None)


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_note_keeps_every_seed_to_the_last_digit(packaged: Bundle, seed: int) -> None:
    job = Job(["cat"], [2**53 + 1], None, {"seed": seed}, Blend(2**64 - 1 - seed, ["dog"], [0.5]))
    again = from_note(json.loads(json.dumps(job.note(0, job.plan(packaged)))), None, None)
    assert again.settings["seed"] == seed and again.indices == [2**53 + 1]
    assert again.blend is not None and again.blend.seed == 2**64 - 1 - seed


def test_what_a_picture_was_made_from_is_asked_for_in_words(packaged: Bundle, picture: Path, tmp_path: Path) -> None:
    def noted(*flags: Any) -> tuple[dict[str, Any], Any, Any]:
        edit, edit_note = read_edit(packaged, *flags)
        job = Job(["cat"], [0], None, {"seed": 0}, None, edit, edit_note)
        return job.note(0, job.plan(packaged)), edit, edit_note

    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    plain, edited, masked = noted(None, None, None), noted(picture, 0.4, None), noted(picture, 0.4, picture)
    other, louder = noted(tmp_path / "other.png", 0.4, None), noted(picture, 0.7, None)
    for note, given, expected in (
        (edited, plain, r"--remake: was made from a picture, found no --from; give the same one with --from PICTURE$"),
        (masked, plain, r"found no --from; give the same one with --from PICTURE and --mask PICTURE$"),
        (plain, edited, r"--from: the picture of --remake was drawn from noise alone; leave it out"),
        (edited, other, r"--from: the picture of --remake was made with another; give --from as it was then"),
        (edited, masked, r"--mask: the picture of --remake was made without one; give --mask as it was then"),
        (masked, edited, r"--mask: the picture of --remake was made with one, found none; give --mask"),
        (edited, louder, r"--strength: the picture of --remake was made with 0\.4, found 0\.7; leave it out"),
    ):
        with pytest.raises(Failure, match=rf"^{expected}" if expected.startswith("--") else expected) as caught:
            from_note(note[0], *given[1:])
        assert "{" not in str(caught.value)


def test_the_strength_is_in_the_note(tmp_path: Path) -> None:
    for note, expected in (({"from": {"strength": 0.4}}, 0.4), ({"from": {"strength": "x"}}, None), ({"from": 5}, None), ({}, None)):
        (tmp_path / "a.png").write_bytes(encoded(np.zeros((2, 2, 3), np.uint8), "png", note))
        assert noted_strength(tmp_path / "a.png") == expected


def test_a_moving_picture_gives_its_first_frame_and_says_so(packaged: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    edit, _ = read_edit(packaged, tmp_path / "a.gif", None, None)
    assert edit is not None and edit.picture.reshape(-1, 3).tolist() == [[255, 0, 0]] * 1024
    assert caplog.messages == [f"--from {tmp_path / 'a.gif'}: holds 3 pictures; the first is taken"]


def test_sixteen_bits_and_alpha_are_seen_as_they_look(packaged: Bundle, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 33138, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 0.25, np.float32)).save(tmp_path / "float.tif")
    for name, level in (("deep.png", 129), ("clear.png", 255), ("float.tif", 64)):
        edit, _ = read_edit(packaged, tmp_path / name, None, tmp_path / name)
        assert edit is not None and (edit.picture == level).all()
        assert edit.mask is not None and edit.mask.all() == (level > 127)
    Image.fromarray(np.full((32, 32), 70000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(Failure, match=r"^--from .*wide\.tif: expected 8 or 16 bits, .* found 32-bit integers of 70000 .. 70000"):
        read_edit(packaged, tmp_path / "wide.tif", None, None)


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
