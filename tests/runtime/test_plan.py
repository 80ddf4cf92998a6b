"""Fitted steps are taken where they are right and nowhere else; a share of the schedule is its clean end."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Edit, Plan, Request, resolve
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.fitted import Fitted

FITTED = Fitted((999.0, 500.0, 0.0), ((1.0, 0.0, 0.0, 0.0),) * 2, 3.0)


def make_plan(bundle: Bundle, sampler: str | None = None, steps: int | None = None, guidance: Any = None, n: int = 0,
              strength: float | None = None, **settings: Any) -> Plan:  # fmt: skip
    n = n or (len(guidance) if np.ndim(guidance) == 1 else 1)
    edit = None if strength is None else Edit(np.zeros((32, 32, 3), np.uint8), strength)
    return resolve(bundle, Request([0] * max(1, n), steps, guidance, sampler=sampler, edit=edit, **settings))


@pytest.fixture
def bundle(packaged: Bundle) -> Bundle:
    return dataclasses.replace(packaged, fitted={2: FITTED}, defaults=Defaults("dpmpp-2m", 2, 3.0, None))


def test_fitted_steps_are_the_default_where_they_are_right(bundle: Bundle) -> None:
    for plan in (
        make_plan(bundle),
        make_plan(bundle, steps=2, guidance=3.0),
        make_plan(bundle, sampler="fitted", guidance=1.5),
    ):
        assert (plan.course.sampler, plan.steps) == ("fitted", 2) and plan.course.timesteps.tolist() == [999, 500, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3}, {"guidance": 2.0}, {"guidance": [3.0, 2.0]}, {"sampler": "dpmpp-2m"}, {"spacing": "uniform"},
        {"timesteps": [9, 1]},
        {"interval": (0.1, 3.0)}, {"rescale": 0.5}, {"threshold": 0.99}, {"strength": 0.5},
    ],
)  # fmt: skip
def test_elsewhere_they_are_not(bundle: Bundle, settings: dict) -> None:
    plan = make_plan(bundle, **settings)
    assert plan.course.sampler == "dpmpp-2m" and plan.course.spacing != "fitted"


def test_those_for_an_interval_are_right_inside_it_alone(bundle: Bundle) -> None:
    inside = dataclasses.replace(bundle, fitted={2: dataclasses.replace(FITTED, interval=(0.1, 3.0))})
    assert make_plan(inside, interval=(0.1, 3.0)).course.sampler == "fitted"
    assert make_plan(inside).course.sampler == make_plan(inside, interval=(0.1, 2.0)).course.sampler == "dpmpp-2m"


@pytest.mark.parametrize("settings", [{"steps": 3}, {"spacing": "karras"}, {"strength": 0.5}, {"timesteps": [9, 1]}])
def test_asked_for_where_there_are_none_they_are_refused(bundle: Bundle, settings: dict) -> None:
    with pytest.raises(BadInput, match=r"^sampler: .*`steps` of 2 for this model"):
        make_plan(bundle, sampler="fitted", **settings)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
@pytest.mark.parametrize("strength", [0.3, 0.9999])
def test_a_share_of_the_schedule_starts_there_and_keeps_the_rest(bundle: Bundle, sampler: str, strength: float) -> None:
    whole, part = (make_plan(bundle, sampler, 11, strength=share) for share in (1.0, strength))
    start = min(1000 * strength, whole.course.timesteps[0])
    assert (
        part.course.timesteps[0] == start
        and part.course.evaluations == 11
        and part.steps == len(part.course.timesteps) - 1 <= 11
    )
    np.testing.assert_array_equal(part.course.timesteps[1:], whole.course.timesteps[whole.course.timesteps < start])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"strength": 0.0}, "edit.strength"),
        ({"strength": 1.5}, "edit.strength"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "2"}, "steps"),
        ({"steps": 2**64}, "steps"),
        ({"guidance": "4"}, "guidance"),
        ({"guidance": [[1, 2]]}, "guidance"),
        ({"guidance": [2.0, float("nan")]}, "guidance"),
        ({"guidance": np.array([])}, "guidance"),
        ({"interval": 3}, "interval"),
        ({"interval": (1, 2, 3)}, "interval"),
    ],
)
def test_nonsense_is_refused(bundle: Bundle, settings: dict, flag: str) -> None:
    with pytest.raises(BadInput, match=f"^{flag}: expected"):
        make_plan(bundle, **settings)


def test_names_are_taken_in_any_case(bundle: Bundle) -> None:
    plan = make_plan(bundle, "Euler-A", 4, spacing="LOG-SNR")
    assert (plan.course.sampler, plan.course.spacing) == ("euler-a", "log-snr")
    assert make_plan(bundle, "Fitted").course.sampler == "fitted"
    for wrong, message in (
        ({"spacing": ""}, "^spacing: no spacing ''"),
        ({"sampler": ""}, "^sampler: no sampler ''; choose from .*, fitted"),
    ):
        with pytest.raises(BadInput, match=message):
            make_plan(bundle, **wrong)


def test_an_array_of_guidance_is_as_a_list(bundle: Bundle) -> None:
    assert make_plan(bundle, guidance=np.array([1.5, 4])).guidance == make_plan(bundle, guidance=[1.5, 4]).guidance
    for w in (np.float32(3), np.array(3), np.array([3, 3]), 3):
        assert make_plan(bundle, guidance=w).guidance.weights == (3.0,)
        assert make_plan(bundle, guidance=w).course.sampler == "fitted"


@pytest.mark.parametrize(("settings", "flag"), [({"interval": (0.1, 3)}, "interval"), ({"rescale": 0.5}, "rescale")])
def test_what_guides_nothing_at_guidance_1_is_refused(bundle: Bundle, settings: dict, flag: str) -> None:
    for weights in (1, [1.0, 1.0]):
        with pytest.raises(BadInput, match=f"^{flag}: has no effect at guidance 1"):
            make_plan(bundle, guidance=weights, **settings)
    assert make_plan(bundle, guidance=[1, 2], **settings).guidance.weights == (1.0, 2.0)
    own = dataclasses.replace(bundle, defaults=Defaults("ddim", 5, 4.0, (0.1, 3.0)))  # nobody asked for the model's own
    assert make_plan(own, guidance=1).guidance.interval == (0.1, 3.0)
    fitted = dataclasses.replace(bundle, fitted={2: dataclasses.replace(FITTED, guidance=1.0, interval=(0.1, 3.0))})
    assert make_plan(fitted, guidance=1, interval=(0.1, 3)).course.sampler == "fitted"  # it chooses them
    assert make_plan(own, guidance=1, interval=(0, np.inf)).guidance.interval is None  # everywhere


def test_an_interval_beside_all_evaluations_is_refused(bundle: Bundle) -> None:
    for interval in ((200, 300), (1e-5, 1e-3)):
        with pytest.raises(BadInput, match=r"^interval: expected a part of 0\.004 \.\. 160, found "):
            make_plan(bundle, "dpmpp-2m", 6, interval=interval)
    assert make_plan(bundle, "ddim", 6, interval=(200, 1e9)).steps == 6  # T itself is in it
    assert (
        make_plan(bundle, "ddim", timesteps=[900], interval=(0.1, 3)).steps == 1
    )  # no level in it, but inside the schedule
    with pytest.raises(BadInput, match=r"^interval: expected a part of 0 \.\. 2.03e\+04, found 30000,40000"):
        make_plan(bundle, "ddim", timesteps=[900], interval=(3e4, 4e4))


def test_the_rows_of_the_network_are_two_for_a_guided_evaluation(bundle: Bundle) -> None:
    assert [make_plan(bundle, "ddim", 6, w, n=10).rows for w in (1, 4, [1, 4] * 5)] == [60, 120, 120]
