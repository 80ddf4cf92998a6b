"""Guidance outside the graph against guidance inside it, against diffusers and against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.guidance import Evaluate, Guidance, guided, mixed, rescaled, thresholded, watched, with_x0
from cfgdiff.runtime.samplers import Steps, run
from cfgdiff.runtime.schedule import Schedule

LABELS, T = np.array([3, 5, 6, 0, 6]), 400.5
X = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
WEIGHTS = np.array([1, 4, 1, 2.5, 1], np.float32)


def predict(engine: Engine, bundle: Bundle, weights: np.ndarray = WEIGHTS, **settings: object) -> np.ndarray:
    evaluate = guided(engine, bundle.schedule, LABELS, 10, weights, Guidance((1.0,), **settings))  # type: ignore[arg-type]
    return run(evaluate(X, T), engine.predict)


def plain(function: Callable[[np.ndarray], np.ndarray]) -> Evaluate:
    """Predictions by a formula, without a call."""

    def evaluate(x: np.ndarray, t: float) -> Steps:
        yield from ()
        return function(x)

    return evaluate


def rows(engine: Engine, w: list[float]) -> np.ndarray:
    return engine.predict(X, np.full(5, T, np.float32), LABELS, np.array(w, np.float32))


def test_every_picture_is_guided_by_its_own_weight(engine: Engine, packaged: Bundle) -> None:
    by_graph, plain = rows(engine, WEIGHTS.tolist()), rows(engine, [])
    found = predict(engine, packaged)
    np.testing.assert_allclose(found, by_graph, atol=2e-4)
    np.testing.assert_allclose(found[WEIGHTS == 1], plain[WEIGHTS == 1], atol=2e-5)
    assert np.abs(found - plain)[WEIGHTS != 1].max() > 0.05


def test_outside_its_interval_it_is_the_conditional_answer_bit_for_bit(engine: Engine, packaged: Bundle) -> None:
    ratio, all_guided = float(packaged.schedule.ratio(T)), np.full(5, 3, np.float32)
    np.testing.assert_array_equal(predict(engine, packaged, all_guided, interval=(ratio * 1.01, 99)), rows(engine, []))
    np.testing.assert_array_equal(
        predict(engine, packaged, all_guided, interval=(0, ratio * 1.01)), rows(engine, [3.0] * 5)
    )


def test_rescaling_is_diffusers_and_costs_the_rows_of_guidance(engine: Engine, packaged: Bundle) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    peer = pytest.importorskip(
        "diffusers.guiders.guider_utils", reason="the peer library is missing: pip install 'cfgdiff[dev]'"
    )
    plain, full = rows(engine, []), rows(engine, WEIGHTS.tolist())
    expected = peer.rescale_noise_cfg(torch.tensor(full), torch.tensor(plain), 0.7).numpy()
    expected[WEIGHTS == 1] = plain[WEIGHTS == 1]
    # torch's std divides by n - 1, but in both of its parts
    np.testing.assert_allclose(predict(engine, packaged, rescale=0.7), expected, atol=3e-4)
    assert np.abs(full - expected).max() > 0.02


def test_rescaling_wholly_gives_the_conditional_deviation() -> None:
    answer, cond = np.random.default_rng(1).standard_normal((2, 4, 3, 8, 8)) * [[[[[3]]]], [[[[0.5]]]]]
    np.testing.assert_allclose(rescaled(answer, cond, 1.0).std((1, 2, 3)), cond.std((1, 2, 3)))
    np.testing.assert_array_equal(rescaled(answer, cond, 0.0), answer)


def test_thresholding_keeps_a_share_of_the_pixels_in_range() -> None:
    x0 = np.stack([np.linspace(-3, 3, 101), np.linspace(-0.5, 0.5, 101)]).reshape(2, 1, 1, 101)
    found = thresholded(x0, 0.5, 1.0)
    np.testing.assert_allclose(
        found[0, 0, 0], np.clip(np.linspace(-3, 3, 101), -1.5, 1.5) / 1.5
    )  # half of |x0| is below 1.5
    np.testing.assert_array_equal(found[1], x0[1])  # in range already
    np.testing.assert_allclose(thresholded(x0, 1.0, 2.0)[0], x0[0] * 2 / 3)


def test_mixtures_are_linear_in_the_share() -> None:
    evaluate = mixed(plain(lambda x: x), plain(lambda x: 5 * x), np.array([0, 0.25, 0.5, 0.75, 1]))
    found = run(evaluate(X, T), None)
    np.testing.assert_allclose(found, X * np.array([1, 2, 3, 4, 5])[:, None, None, None], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_clean_picture_is_changed_and_watched(prediction: str) -> None:
    schedule, seen = Schedule(prediction=prediction), list[np.ndarray]()
    changed = with_x0(plain(lambda x: 0.3 * x), schedule, lambda x0: x0 * 0 + 0.25)
    x = X.astype(np.float64)
    prediction = run(watched(changed, schedule, seen.append)(x, T), None)
    np.testing.assert_allclose(schedule.to_x0(prediction, x, T), 0.25, atol=1e-12)
    np.testing.assert_allclose(seen[0], 0.25, atol=1e-12)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_fails_and_names_the_evaluation(value: float, rescale: float) -> None:
    class Damaged:
        name, precision, max_batch = "damaged", "float16", 64

        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
        ) -> np.ndarray:
            answer = sample + 1
            answer[1, 2, 3, 4] = value
            return answer

        def close(self) -> None: ...

    expected = r"^damaged, float16: the network's prediction at t = 400\.5 is not finite: "
    expected += r"weights [^\n]* or float16 overflows [^\n]*$"
    with pytest.raises(Failure, match=expected), np.errstate(invalid="ignore"):
        run(
            guided(Damaged(), Schedule(), LABELS, 10, WEIGHTS, Guidance((1.0,), rescale=rescale))(X, T),
            Damaged().predict,
        )


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"weights": (float("nan"),)}, "^guidance: expected finite"),
        ({"weights": ()}, "^guidance: expected finite"),
        (
            {"weights": (1.0, 1e39)},
            r"^guidance: expected at most 3.4e\+38, as float32 holds it, found 1e\+39",
        ),  # not in float32
        ({"interval": (3.0, 1.0)}, "^interval: expected 0 <= LO < HI, found 3.0,1.0"),
        ({"rescale": 1.5}, "^rescale: expected 0 .. 1, found 1.5"),
        ({"threshold": 0.0}, "^threshold: expected a share"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict, flag: str) -> None:
    with pytest.raises(BadInput, match=flag):
        Guidance(**({"weights": (1.0,)} | wrong))
