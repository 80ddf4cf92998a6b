"""The schedule against equation 17 of Nichol & Dhariwal written out step by step."""

import math

import numpy as np
import pytest

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.schedule import Schedule


def test_alpha_bar_is_the_product_of_clipped_betas() -> None:
    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, 1001)]
    expected = np.cumprod(1 - np.array(betas))
    np.testing.assert_allclose(Schedule().alpha_bar(np.arange(1, 1001)), expected, rtol=1e-9)
    assert Schedule().alpha_bar(0) == 1


@pytest.mark.parametrize("steps", [1000, 250])
def test_linear_alpha_bar_is_the_product_of_ddpms_betas(steps: int) -> None:
    expected = np.cumprod([1 - 1000 / steps * (1e-4 + (0.02 - 1e-4) * i / (steps - 1)) for i in range(steps)])
    schedule = Schedule("linear", steps)
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(1, steps + 1)), expected, rtol=1e-9)
    assert schedule.alpha_bar(0) == 1 and schedule.alpha_bar(10.5) == pytest.approx((expected[9] * expected[10]) ** 0.5)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_ratio_leads_back_to_its_t(kind: str) -> None:
    t, schedule = np.linspace(0.5, 999.9, 400), Schedule(kind)
    np.testing.assert_allclose(schedule.t_of_ratio(schedule.ratio(t)), t, rtol=1e-7)
    assert np.all(np.diff(schedule.alpha_bar(np.linspace(0, 1000, 5001))) < 0)
    assert schedule.t_of_ratio(1e9) == pytest.approx(1000) and schedule.t_of_ratio(0) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_predictions_lead_back_to_picture_and_noise(prediction: str) -> None:
    schedule, rng = Schedule(prediction=prediction), np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 4, 4))
    for t in (1.0, 333.3, 900.0):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * x0 + sigma * eps
        answer = {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0}[prediction]
        np.testing.assert_allclose(schedule.to_x0(answer, x, t), x0, atol=1e-9)
        np.testing.assert_allclose(schedule.to_eps(answer, x, t), eps, atol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_forward_process_is_the_same_for_arrays_and_tensors(prediction: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    schedule, rng = Schedule(prediction=prediction), np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 4, 4))
    t = np.array([333.3, 900.0])
    x_t, target = schedule.noised(x0, eps, t), schedule.target(x0, eps, t)
    for row, alpha_bar in enumerate(schedule.alpha_bar(t)):
        np.testing.assert_allclose(
            x_t[row], math.sqrt(alpha_bar) * x0[row] + math.sqrt(1 - alpha_bar) * eps[row], rtol=1e-12
        )
        np.testing.assert_array_equal(schedule.noised(x0[row], eps[row], t[row]), x_t[row])
        np.testing.assert_allclose(schedule.to_x0(target[row], x_t[row], t[row]), x0[row], atol=1e-9)
    for found, expected in ((schedule.noised, x_t), (schedule.target, target)):
        tensor = found(torch.from_numpy(x0).float(), torch.from_numpy(eps).float(), t)
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"kind": "sigmoid"}, {"prediction": "x"}, {"T": 0}, {"data_std": 0.0}])
def test_what_is_not_known_is_refused(wrong: dict) -> None:
    with pytest.raises(Failure, match="schedule"):
        Schedule(**wrong)


def test_noising_is_the_forward_process() -> None:
    schedule, (x0, eps) = (
        Schedule(prediction="eps"),
        np.random.default_rng(0).standard_normal((2, 2, 3, 4, 4), np.float32),
    )
    x_t, alpha_bar = schedule.noised(x0, eps, 400.5), float(schedule.alpha_bar(400.5))
    np.testing.assert_allclose(x_t, alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(schedule.to_x0(eps, x_t, 400.5), x0, atol=1e-5)
    assert x_t.dtype == np.float32
