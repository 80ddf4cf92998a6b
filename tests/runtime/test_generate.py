"""The loop on the packaged model: independence of batches, the cost of guidance, early errors."""

import dataclasses
import inspect

import numpy as np
import pytest

from cfgdiff.runtime import Blend, Bundle, Edit, Engine, Request, generate, resolve, sample
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.fitted import Fitted
from cfgdiff.runtime.generate import arc, to_uint8
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.request import class_labels
from cfgdiff.runtime.spacing import timesteps_for


class Recorder:
    """An engine that answers zero and notes the rows it was asked for."""

    name, precision, max_batch = "fake", "float32", 5

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, float]] = []

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        self.calls.append((len(sample), len(guidance), float(timestep[0])))
        return np.zeros_like(sample)

    def close(self) -> None:
        pass


def pictures(engine: Engine, bundle: Bundle, n: int, **settings: object) -> np.ndarray:
    classes = [bundle.class_names[i % 10] for i in range(n)]
    parts = list(generate(engine, bundle, classes, **{"steps": 3, "seed": 4} | settings))  # type: ignore[arg-type]
    assert [first for first, _ in parts] == list(np.cumsum([0, *(len(p) for _, p in parts)])[:-1])
    return np.concatenate([p for _, p in parts])


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddpm"])
def test_the_same_seed_gives_the_same_pictures_for_any_batch(engine: Engine, packaged: Bundle, sampler: str) -> None:
    whole = pictures(engine, packaged, 64, batch=64, sampler=sampler).astype(int)
    for batch in (1, 7):
        assert np.abs(pictures(engine, packaged, 64, batch=batch, sampler=sampler) - whole).max() <= 1
    assert np.abs(pictures(engine, packaged, 8, sampler=sampler) - whole[:8]).max() <= 1
    assert np.abs(pictures(engine, packaged, 8, sampler=sampler, seed=5) - whole[:8]).max() > 50


def test_guidance_one_costs_half(packaged: Bundle) -> None:
    rows = {}
    for w in (1.0, 2.0):
        engine = Recorder()
        assert len(pictures(engine, packaged, 12, guidance=w, interval=(0.0, 1e9))) == 12
        rows[w] = sum(b + g for b, g, _ in engine.calls)
        assert max(b for b, _, _ in engine.calls) == engine.max_batch
    assert rows == {1.0: 36, 2.0: 72}


def test_guidance_acts_inside_its_interval_only(packaged: Bundle) -> None:
    limited = dataclasses.replace(packaged, defaults=dataclasses.replace(packaged.defaults, interval=(0.2, 3.0)))
    engine = Recorder()
    pictures(engine, limited, 4, guidance=2.0, steps=20)
    for _, g, t in engine.calls:
        assert (g == 4) == (0.2 <= float(packaged.schedule.ratio(np.float64(np.float32(t)))) <= 3.0)


@pytest.mark.parametrize("settings", [{}, {"spacing": "uniform"}, {"timesteps": [900, 400.5, 20]}])
@pytest.mark.parametrize("sampler", ["ddim", "unipc", "heun"])
def test_the_network_runs_at_the_timesteps_that_were_chosen(packaged: Bundle, sampler: str, settings: dict) -> None:
    engine = Recorder()
    steps = 5 if sampler == "heun" else 3
    pictures(engine, packaged, 2, sampler=sampler, steps=None if "timesteps" in settings else steps, **settings)
    chosen = timesteps_for(sampler, steps, packaged.schedule, **settings)
    assert [t for _, _, t in engine.calls] == chosen[:-1].astype(np.float32).tolist()


def test_eta_reaches_ddim_and_its_noise_is_the_pictures_own(engine: Engine, packaged: Bundle) -> None:
    plain, noisy = (pictures(engine, packaged, 4, sampler="ddim", eta=eta).astype(int) for eta in (0, 0.8))
    assert np.abs(noisy - plain).max() > 50
    assert np.abs(pictures(engine, packaged, 4, sampler="ddim", eta=0.8, batch=3) - noisy).max() <= 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"classes": ["forg"]}, "did you mean 'frog'"), ({"classes": [10]}, "no class '10'"),
        ({"classes": []}, "^classes: expected a list of names or numbers, found \\[\\]"), ({"steps": 0}, "^steps: "),
        ({"guidance": float("nan")}, "^guidance: "), ({"sampler": "x"}, "^sampler: "),
        ({"batch": 0}, "^batch: "), ({"seed": -1}, "^seed: "),
        ({"spacing": "x"}, "^spacing: "), ({"timesteps": [2, 3]}, "^timesteps: "), ({"timesteps": []}, "^steps: "),
        ({"steps": 3, "timesteps": [3, 2]}, "^timesteps: "), ({"eta": 0.5}, "^eta: "),
        ({"classes": "frog"}, r"^classes: expected a list of names or numbers, found 'frog'; as in \['airplane'\]$"),
        ({"classes": 6}, "^classes: expected a list"), ({"classes": {"frog": 1}}, "^classes: expected a list"),
        ({"classes": [True]}, "no class 'True'"), ({"classes": [2.5]}, "no class '2.5'"), ({"classes": [-1]},
        "no class '-1'"),
        ({"steps": 2.5}, "^steps: expected 1 or more, a whole number, found 2.5"), ({"batch": 2.5},
        "^batch: .* found 2.5"),
        ({"batch": None}, "^batch: .* found None"), ({"seed": "a"}, "^seed: .* found 'a'"), ({"seed": 1.5},
        "^seed: .* found 1.5"),
        ({"seed": [1, 2]}, "^seed: expected 1 numbers, one for each class, found 2"), ({"seed": 2**64},
        "^seed: expected 0"),
        ({"indices": [-1]}, "^indices: expected 0"), ({"indices": [0.5]}, "^indices: .* found 0.5"),
        ({"guidance": [1.0, float("nan")]}, "^guidance: expected finite numbers, found 1.0, nan"), ({"spacing": ""},
        "no spacing ''"),
    ],
)  # fmt: skip
def test_bad_input_is_named_at_the_call(packaged: Bundle, settings: dict, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        generate(Recorder(), packaged, **({"classes": ["frog"]} | settings))


def test_generate_is_short_and_a_request_says_the_same(packaged: Bundle) -> None:
    parameters = inspect.signature(generate).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][3:] == [
        "steps",
        "guidance",
        "seed",
        "sampler",
    ]
    assert len(parameters) - 1 <= 8  # what guidance comes with
    request = Request(["cat", "dog"], 3, 2.0, 5, "ddim", eta=0.5, interval=(0.1, 9), batch=1)
    drawn = list(sample(Recorder(), resolve(packaged, request)))
    settings = {"eta": 0.5, "interval": (0.1, 9), "batch": 1}
    short = list(generate(Recorder(), packaged, ["cat", "dog"], 3, 2.0, 5, "ddim", **settings))
    assert [first for first, _ in drawn] == [first for first, _ in short] == [0, 1]
    np.testing.assert_array_equal(*(np.concatenate([part for _, part in parts]) for parts in (drawn, short)))
    with pytest.raises(TypeError, match="stpes"):
        generate(Recorder(), packaged, ["cat"], stpes=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.steps = 4  # type: ignore[misc]


def test_rescaling_fits_two_rows_a_picture_into_an_engine(packaged: Bundle) -> None:
    class Answering(Recorder):
        def predict(self, sample: np.ndarray, *others: np.ndarray) -> np.ndarray:
            return sample + super().predict(sample, *others)

    engine = Answering()
    pictures(engine, packaged, 5, guidance=2.0, rescale=0.5, steps=1, interval=(0, np.inf))
    assert [b for b, _, _ in engine.calls] == [4, 4, 2]  # of at most 5 rows


def test_pictures_fill_the_range_of_uint8() -> None:
    x = np.array([-2, -1, 0, 1, 2], np.float32).reshape(5, 1, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]


def test_half_of_the_steps_guided_cost_one_and_a_half_rows_a_step(packaged: Bundle) -> None:
    levels = packaged.schedule.ratio(timesteps_for("dpmpp-2m", 20, packaged.schedule)[:-1])
    engine = Recorder()
    pictures(engine, packaged, 4, guidance=3.0, steps=20, interval=(float(levels[14]) * 0.99, float(levels[5]) * 1.01))
    assert sum(b + g for b, g, _ in engine.calls) == 1.5 * 20 * 4


def test_a_picture_can_be_drawn_by_its_number_and_with_its_own_guidance(engine: Engine, packaged: Bundle) -> None:
    everywhere = (0.0, 1e9)
    whole = pictures(engine, packaged, 6, guidance=[1.0, 2.0, 4.0, 1.0, 3.0, 2.0], batch=4, interval=everywhere).astype(
        int
    )
    ((_, alone),) = generate(engine, packaged, ["deer"], 3, 3.0, seed=4, indices=[4], interval=everywhere)
    assert np.abs(alone[0] - whole[4]).max() <= 1
    ((_, other),) = generate(engine, packaged, ["deer"], 3, 2.0, seed=4, indices=[4], interval=everywhere)
    assert np.abs(other[0] - whole[4]).max() > 5


def test_interpolation_starts_at_one_end_and_ends_at_the_other(engine: Engine, packaged: Bundle) -> None:
    settings = {"steps": 3, "indices": [2] * 3}
    blend = Blend(9, ["dog"] * 3, [0.0, 0.5, 1.0])
    ((_, between),) = generate(engine, packaged, ["cat"] * 3, seed=4, blend=blend, **settings)
    ((_, start),) = generate(engine, packaged, ["cat"] * 3, seed=4, **settings)
    ((_, end),) = generate(engine, packaged, ["dog"] * 3, seed=9, **settings)
    for got, end_point in ((between[0], start[0]), (between[2], end[0])):
        assert np.abs(got.astype(int) - end_point).max() <= 1
    assert np.abs(between[1].astype(int) - start[0]).max() > 20 < np.abs(between[1].astype(int) - end[0]).max()


def test_the_arc_between_latents_keeps_their_length() -> None:
    a, b = normals(0, np.arange(3), 0, (3, 32, 32)), normals(1, np.arange(3), 0, (3, 32, 32))
    middle = arc(a, b, np.full(3, 0.5))
    np.testing.assert_allclose(np.square(middle).mean((1, 2, 3)), 1, atol=0.1)  # the chord's middle has half
    np.testing.assert_allclose(arc(a, a, np.array([0, 0.3, 1])), a, atol=1e-6)
    quarter = arc(np.array([[1.0, 0]]), np.array([[0, 1.0]]), np.array([1 / 3]))
    np.testing.assert_allclose(quarter, [[np.cos(np.pi / 6), np.sin(np.pi / 6)]], atol=1e-6)


def test_an_edit_keeps_more_of_its_picture_the_weaker_it_is(engine: Engine, packaged: Bundle) -> None:
    ((_, (picture,)),) = generate(engine, packaged, ["ship"], steps=10)
    apart = []
    for strength in (0.1, 0.5, 0.9):
        ((_, (found,)),) = generate(engine, packaged, ["ship"], steps=10, seed=1, edit=Edit(picture, strength))
        apart.append(np.square(found.astype(float) - picture).mean())
    assert apart[0] < 100 and apart[0] < apart[1] / 3 < apart[2] / 6


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m", "unipc"])
def test_what_is_not_masked_stays_pixel_by_pixel(engine: Engine, packaged: Bundle, sampler: str) -> None:
    ((_, (picture,)),) = generate(engine, packaged, ["ship"], steps=5)
    mask = np.zeros((32, 32), bool)
    mask[:, 20:] = True
    ((_, found),) = generate(
        engine, packaged, ["ship"] * 2, steps=8, seed=1, sampler=sampler, edit=Edit(picture, 1.0, mask)
    )
    np.testing.assert_array_equal(found[:, ~mask], np.broadcast_to(picture[~mask], (2, *picture[~mask].shape)))
    assert np.abs(found[0, mask].astype(int) - picture[mask]).max() > 20


def test_it_can_be_watched_and_stopped(packaged: Bundle) -> None:
    engine, seen = Recorder(), list[tuple[int, tuple[int, ...]]]()
    batches = generate(engine, packaged, ["cat"] * 12, steps=3, watch=lambda first, x0: seen.append((first, x0.shape)))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert seen == [(0, (5, 3, 32, 32))] * 3 and len(engine.calls) == 3
    assert list(batches) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance": [1.0, 2.0]}, "^guidance: expected 1 or 3 numbers"),
        ({"indices": [0, 1]}, "indices: expected 3 numbers"),
        ({"blend": Blend(1, ["cat"] * 2, [0, 1])}, "blend: expected 3 shares"),
        ({"blend": Blend(-1, ["cat"] * 3, [0, 0, 1])}, "^blend.seed: expected"),
        ({"blend": Blend([1, 2], ["cat"] * 3, [0, 0, 1])}, "^blend.seed: expected 3 numbers"),
        (
            {"blend": Blend(1, ["cat"] * 3, [0, float("nan"), 1])},
            r"^blend.shares: expected shares of 0 \.\. 1, found 0, nan, 1",
        ),
        ({"edit": Edit(np.zeros((32, 32, 4), np.uint8))}, "^edit.picture: expected uint8"),
        ({"edit": Edit(np.zeros((32, 32, 3), np.uint8), 1.0, np.zeros((3, 3), bool))}, "^edit.mask: expected bool"),
    ],
)
def test_what_does_not_belong_together_is_refused_at_the_call(packaged: Bundle, wrong: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        generate(Recorder(), packaged, ["cat"] * 3, **wrong)


def test_names_of_classes_are_taken_in_any_case_and_numbers_are_numpys_too(packaged: Bundle) -> None:
    assert class_labels(packaged, ["FROG", "Ship", 3, np.int64(4)]).tolist() == [6, 8, 3, 4]
    assert (
        class_labels(packaged, np.array([1, 9])).tolist()
        == class_labels(packaged, ("automobile", "truck")).tolist()
        == [1, 9]
    )
    twins = dataclasses.replace(packaged, class_names=["cat", "Cat", "dog"])
    assert class_labels(twins, ["Cat", "cat"]).tolist() == [1, 0]
    with pytest.raises(BadInput, match=r"^classes: class 'CAT' may be cat or Cat"):
        class_labels(twins, ["CAT"])


def test_every_seed_draws_pictures_of_its_own(packaged: Bundle) -> None:
    seeds = [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    drawn = {pictures(Recorder(), packaged, 2, seed=seed).tobytes() for seed in seeds}
    blends = {
        pictures(Recorder(), packaged, 2, blend=Blend(seed, ["airplane", "automobile"], [0.5, 1])).tobytes()
        for seed in seeds
    }
    assert len(drawn) == len(blends) == len(seeds)


def test_with_a_seed_of_its_own_a_picture_depends_on_no_place(packaged: Bundle) -> None:
    def drawn(classes: list[str], sampler: str = "ddpm", **settings: object) -> np.ndarray:
        return np.concatenate(
            [p for _, p in generate(Recorder(), packaged, classes, 3, 1.0, sampler=sampler, batch=2, **settings)]
        )  # type: ignore[arg-type]

    together = drawn(["cat", "dog", "cat"], seed=[7, 2**64 - 1, 3])
    np.testing.assert_array_equal(drawn(["cat", "dog"], seed=np.array([3, 7])), together[[2, 0]])
    np.testing.assert_array_equal(drawn(["dog"], seed=2**64 - 1), together[1:2])  # number 0 of that seed
    placed = drawn(["cat"] * 3, seed=[7, 7, 3], indices=[0, 2, 1])
    np.testing.assert_array_equal(placed[:2], drawn(["cat"] * 3, seed=7)[[0, 2]])
    np.testing.assert_array_equal(placed[2], drawn(["cat"] * 3, seed=3)[1])
    ends = drawn(["cat"] * 2, "ddim", seed=[1, 2], blend=Blend([5, 6], ["cat"] * 2, [1.0, 1.0]))
    np.testing.assert_array_equal(ends, drawn(["cat"] * 2, "ddim", seed=[5, 6]))


def test_guidance_may_be_an_array(packaged: Bundle) -> None:
    engine = Recorder()
    pictures(engine, packaged, 3, guidance=np.array([1.0, 2.0, 4.0]), interval=(0.0, 1e9))
    assert [(b, g) for b, g, _ in engine.calls] == [(3, 2)] * 3


def test_what_is_not_finite_fails_and_is_no_black_picture(packaged: Bundle) -> None:
    class Damaged(Recorder):
        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
        ) -> np.ndarray:
            answer = super().predict(sample, timestep, class_label, guidance) + 1e6
            return answer + np.float32(np.nan) if len(self.calls) == 2 else answer

    with pytest.raises(Failure, match=r"^fake, float32: the network's prediction at t = 500 is not finite: "):
        pictures(Damaged(), packaged, 2, sampler="ddim", timesteps=[900, 500, 20], steps=None)
    steps = Fitted((999.0, 0.0), ((1.0, 1e38, 0.0, 0.0),), 4.0)
    with pytest.raises(
        Failure, match=r"^fake, float32: the finished picture is not finite: weights or fitted steps are damaged"
    ):
        pictures(Damaged(), dataclasses.replace(packaged, fitted={1: steps}), 2, sampler="fitted", steps=1)


def test_euler_is_ddim_in_another_spacing(packaged: Bundle) -> None:
    euler, ddim = (pictures(Recorder(), packaged, 2, sampler=name, spacing="log-snr") for name in ("Euler", "ddim"))
    np.testing.assert_array_equal(euler, ddim)
