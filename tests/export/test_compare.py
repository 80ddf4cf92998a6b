"""Measures of how far two engines are apart, against planted differences."""

import numpy as np
import onnx
import pytest

from cfgdiff.export.compare import draw, errors_by_level, feature_distance, features, noised
from cfgdiff.runtime import Bundle, open_engine
from cfgdiff.trainer.engine_torch import TorchEngine
from cfgdiff.trainer.weights import LoadedModel


def test_noised_pictures_are_at_their_level(described: Bundle) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    clean = (pictures.transpose(0, 3, 1, 2) / 127.5 - 1) / described.schedule.data_std
    x_t, t = noised(described, pictures, 1.0, stream=3)
    assert np.log(described.schedule.ratio(t[0])) == pytest.approx(1, abs=1e-4)
    noise = (x_t - described.schedule.alpha(t[0]) * clean) / described.schedule.sigma(t[0])
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)


def test_errors_by_level_are_those_of_a_planted_one(model: LoadedModel, described: Bundle) -> None:
    class Off(TorchEngine):
        """A hundredth too much, where there is much noise."""

        def predict(
            self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
        ) -> np.ndarray:
            answer = super().predict(sample, timestep, class_label, guidance)
            return answer * 1.01 if model.schedule.ratio(float(timestep[0])) > 1.5 else answer

    engine = TorchEngine(model.network, 3)
    found = errors_by_level(Off(model.network, 3), engine, described, draw(engine, described, 4))
    prediction, x0 = found["prediction"], found["x0"]
    assert (
        [prediction[f"{level:+d}"] for level in range(-5, 1)]
        == [x0[f"{level:+d}"] for level in range(-5, 1)]
        == [0] * 6
    )
    assert [prediction[f"{level:+d}"] for level in range(1, 6)] == pytest.approx([0.01] * 5, rel=1e-3)
    assert all(0 < x0[f"{level:+d}"] < 0.2 for level in range(1, 6))


def test_features_are_the_mean_activations_of_the_convolutions(
    graph: onnx.ModelProto, model: LoadedModel, described: Bundle
) -> None:
    import torch

    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found, hooks, expected = features(graph, described, pictures), [], []
    for module in model.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda *_: expected.append(_[2].mean(dim=(2, 3)))))
    x_t, t = noised(described, pictures, -1.0, stream=11)
    model.network(torch.from_numpy(x_t), torch.from_numpy(t), torch.arange(3))
    for hook in hooks:
        hook.remove()
    assert found.shape == (3, sum(e.shape[1] for e in expected))
    np.testing.assert_allclose(np.sort(found[0]), np.sort(torch.cat(expected, dim=1)[0].numpy()), rtol=0.02, atol=0.02)


def test_the_feature_distance_is_one_for_unrelated_pictures_and_nothing_for_equal_ones() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 400, 50))
    assert feature_distance(b, b) == 0
    assert feature_distance(a, b) == pytest.approx(1, abs=0.05)
    assert feature_distance(b + 0.1 * a, b) == pytest.approx(0.1 / 2**0.5, abs=0.01)


def test_the_packaged_model_tells_its_classes_apart_by_features(packaged: Bundle) -> None:
    graph, engine = onnx.load(str(packaged.path / "model.onnx")), open_engine(packaged, "cpu", threads=2)
    pictures = draw(engine, packaged, 20)
    found = features(graph, packaged, pictures)
    noisy = (pictures + np.random.default_rng(0).normal(0, 4, pictures.shape)).clip(0, 255).astype(np.uint8)
    assert feature_distance(features(graph, packaged, noisy), found) < 0.5 * feature_distance(found[::-1], found)
