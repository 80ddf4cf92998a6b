"""Fitted steps are taken where they are right and nowhere else; a share of the schedule is its clean end."""

import dataclasses

import numpy as np
import pytest

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import Defaults
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.fitted import Fitted
from cfgdiff.runtime.plan import make_plan

FITTED = Fitted((999.0, 500.0, 0.0), ((1.0, 0.0, 0.0, 0.0),) * 2, 3.0)


@pytest.fixture
def bundle(packaged: Bundle) -> Bundle:
    return dataclasses.replace(packaged, fitted={2: FITTED}, defaults=Defaults("dpmpp-2m", 2, 3.0, None))


def test_fitted_steps_are_the_default_where_they_are_right(bundle: Bundle) -> None:
    for plan in (make_plan(bundle), make_plan(bundle, steps=2, guidance=3.0), make_plan(bundle, sampler="fitted", guidance=1.5)):
        assert (plan.sampler, plan.steps) == ("fitted", 2) and plan.timesteps.tolist() == [999, 500, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3}, {"guidance": 2.0}, {"guidance": [3.0, 2.0]}, {"sampler": "dpmpp-2m"}, {"spacing": "uniform"}, {"timesteps": [9, 1]},
        {"interval": (0.1, 3.0)}, {"rescale": 0.5}, {"threshold": 0.99}, {"strength": 0.5},
    ],
)  # fmt: skip
def test_elsewhere_they_are_not(bundle: Bundle, settings: dict) -> None:
    plan = make_plan(bundle, **settings)
    assert plan.sampler == "dpmpp-2m" and plan.spacing != "fitted"


def test_those_for_an_interval_are_right_inside_it_alone(bundle: Bundle) -> None:
    inside = dataclasses.replace(bundle, fitted={2: dataclasses.replace(FITTED, interval=(0.1, 3.0))})
    assert make_plan(inside, interval=(0.1, 3.0)).sampler == "fitted"
    assert make_plan(inside).sampler == make_plan(inside, interval=(0.1, 2.0)).sampler == "dpmpp-2m"


@pytest.mark.parametrize("settings", [{"steps": 3}, {"spacing": "karras"}, {"strength": 0.5}, {"timesteps": [9, 1]}])
def test_asked_for_where_there_are_none_they_are_refused(bundle: Bundle, settings: dict) -> None:
    with pytest.raises(BadInput, match="--steps of 2 for this model"):
        make_plan(bundle, sampler="fitted", **settings)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m", "heun"])
@pytest.mark.parametrize("strength", [0.3, 0.9999])
def test_a_share_of_the_schedule_starts_there_and_keeps_the_rest(bundle: Bundle, sampler: str, strength: float) -> None:
    whole, part = (make_plan(bundle, sampler, 11, strength=share) for share in (1.0, strength))
    start = min(1000 * strength, whole.timesteps[0])
    assert part.timesteps[0] == start and part.asked == 11 and part.steps == len(part.timesteps) - 1 <= 11
    np.testing.assert_array_equal(part.timesteps[1:], whole.timesteps[whole.timesteps < start])


@pytest.mark.parametrize(
    ("settings", "flag"), [({"strength": 0.0}, "--strength"), ({"strength": 1.5}, "--strength"), ({"steps": 0}, "--steps")]
)
def test_nonsense_is_refused(bundle: Bundle, settings: dict, flag: str) -> None:
    with pytest.raises(BadInput, match=f"^{flag}: expected"):
        make_plan(bundle, **settings)
