"""The loop on the packaged model: independence of batches, the cost of guidance, early errors."""

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.generate import to_uint8
from cfgdiff.runtime.spacing import timesteps_for


class Recorder:
    """An engine that answers zero and notes the rows it was asked for."""

    name, precision, max_batch = "fake", "float32", 5

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, float]] = []

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
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
        assert len(pictures(engine, packaged, 12, guidance=w)) == 12
        rows[w] = sum(b + g for b, g, _ in engine.calls)
        assert max(b for b, _, _ in engine.calls) == engine.max_batch
    assert rows == {1.0: 36, 2.0: 72}


def test_guidance_acts_inside_its_interval_only(packaged: Bundle) -> None:
    import dataclasses

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
        ({"classes": []}, "--n"), ({"steps": 0}, "--steps"),
        ({"guidance": float("nan")}, "--guidance"), ({"sampler": "x"}, "--sampler"), ({"batch": 0}, "--batch"), ({"seed": -1}, "--seed"),
        ({"spacing": "x"}, "--spacing"), ({"timesteps": [2, 3]}, "--timesteps"), ({"timesteps": []}, "--steps"),
        ({"steps": 3, "timesteps": [3, 2]}, "--timesteps"), ({"eta": 0.5}, "--eta"),
    ],
)  # fmt: skip
def test_bad_input_is_named_at_the_call(packaged: Bundle, settings: dict, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        generate(Recorder(), packaged, **({"classes": ["frog"]} | settings))


def test_pictures_fill_the_range_of_uint8() -> None:
    x = np.array([-2, -1, 0, 1, 2], np.float32).reshape(5, 1, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]
