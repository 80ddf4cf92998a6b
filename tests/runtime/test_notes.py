"""A note holds all that a picture depends on: the request made of it draws the same."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Blend, Bundle, Edit, Plan, Request, resolve
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.notes import note_of, request_of

EDIT = Edit(np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3), 0.4, np.eye(32, dtype=bool))
PLAIN = Request(["cat"])


def note(bundle: Bundle, request: Request, i: int = 0) -> dict[str, Any]:
    return json.loads(json.dumps(note_of(resolve(bundle, request), i)))


def same(a: Plan, b: Plan) -> bool:
    arrays = ("labels", "seeds", "indices", "weights")
    ends = [None if plan.end is None else [array.tolist() for array in plan.end] for plan in (a, b)]
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and ends[0] == ends[1]
        and a.course.timesteps.tolist() == b.course.timesteps.tolist()
        and a.course[:3] == b.course[:3]
        and a.guidance.interval == b.guidance.interval
        and (a.guidance.rescale, a.guidance.threshold) == (b.guidance.rescale, b.guidance.threshold)
    )


@pytest.mark.parametrize("blend", [None, Blend(8, ["dog", "dog", "cat"], [0.0, 0.5, 1.0])])
def test_a_note_and_back(packaged: Bundle, blend: Blend | None) -> None:
    request = Request(
        ["cat", "ship", "dog"], 7, [1.0, 2.0, 3.0], 5, "ddim", spacing="karras", eta=0.5, interval=(0.1, 9.0),
        rescale=0.3,
        threshold=0.99, blend=blend, edit=EDIT,
    )  # fmt: skip
    plan = resolve(packaged, request)
    again = request_of(note(packaged, request, 1), EDIT)
    assert same(resolve(packaged, again), plan.take([1])) and note(packaged, again) == note(packaged, request, 1)


def test_a_picture_of_guidance_1_among_others_can_be_drawn_alone(packaged: Bundle) -> None:
    """The interval is for the others: for it alone `resolve` would refuse one."""
    request = Request(["cat", "ship"], 7, [1.0, 2.0], 5, "ddim", interval=(0.1, 9.0), rescale=0.3)
    again = request_of(note(packaged, request, 0))
    assert resolve(packaged, again).weights.tolist() == [1.0] and again.interval is None and again.rescale == 0
    part = resolve(packaged, request).take([0])  # as where one picture of a run is missing
    assert part.weights.tolist() == [1.0] and part.guidance.interval == (0.1, 9.0) and part.guidance.rescale == 0.3


def test_everywhere_is_noted_where_it_was_asked_for(packaged: Bundle) -> None:
    """The model's own interval is narrower."""
    asked = note(packaged, Request(["cat"], interval=(0, np.inf)))
    assert asked["interval"] == [0, np.inf] and resolve(packaged, request_of(asked)).guidance.interval is None
    everywhere = dataclasses.replace(packaged, defaults=dataclasses.replace(packaged.defaults, interval=None))
    assert "interval" not in note(everywhere, PLAIN)


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_note_keeps_every_seed_to_the_last_digit(packaged: Bundle, seed: int) -> None:
    blend = Blend(2**64 - 1 - seed, ["dog"], [0.5])
    again = request_of(note(packaged, Request(["cat"], seed=seed, indices=[2**53 + 1], blend=blend)))
    assert again.seed == seed and again.indices == [2**53 + 1]
    assert again.blend is not None and again.blend.seed == 2**64 - 1 - seed


def test_defaults_are_noted_as_what_they_were(packaged: Bundle) -> None:
    noted = note(packaged, Request(["cat"], indices=[3]))
    later = dataclasses.replace(packaged.defaults, steps=3, guidance=9.0, sampler="ddpm")
    assert noted["steps"] == packaged.defaults.steps
    assert note(dataclasses.replace(packaged, defaults=later), request_of(noted)) == noted


def test_what_a_note_lacks_is_said() -> None:
    with pytest.raises(Failure, match=r"^note: expected an entry 'sampler' in the note, found none; take a picture"):
        request_of({"class": "cat", "seed": 1, "steps": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1}, {"index": 2**63}, {"index": 1.0}, {"index": True}, {"index": "1"}, {"seed": 2**64}, {"seed": -1},
        {"seed": None}, {"steps": 0}, {"steps": 2**64}, {"steps": 2.5}, {"class": 3}, {"class": ["cat"]},
        {"sampler": None}, {"guidance": float("nan")}, {"guidance": float("inf")}, {"guidance": 10**400},
        {"guidance": 2**64}, {"guidance": [1]}, {"spacing": 5}, {"eta": "x"}, {"rescale": None}, {"threshold": []},
        {"timesteps": 5}, {"timesteps": []}, {"timesteps": ["x"]}, {"interval": [1]}, {"interval": 3},
        {"interval": [float("nan"), 1.0]}, {"to": 5}, {"to": {}}, {"to": {"class": "cat", "seed": 1, "share": "x"}},
        {"to": {"class": "cat", "seed": -1, "share": 0.5}},
    ],
)  # fmt: skip
def test_nonsense_in_a_note_is_named(packaged: Bundle, change: dict[str, Any]) -> None:
    noted = note(packaged, PLAIN)
    assert request_of(noted).indices == [0]
    expected = rf"^note: expected another '{next(iter(change))}' in the note, found .*; take a picture .* cfgdiff-run$"
    with pytest.raises(Failure, match=expected):
        request_of(noted | change)
