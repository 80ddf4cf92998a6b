"""Pictures of a Triton repository in a strict stand-in of the server (`fake_triton`), against `generate`'s."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import Incoming, Refused, Server, TritonError, rows

from cfgdiff.export.triton import write_repository
from cfgdiff.runtime import Bundle, Engine, generate, load_bundle, open_engine
from cfgdiff.runtime.noise import normals

Served = tuple[Bundle, Engine, Server]


@pytest.fixture(scope="module", params=["cifar10-turbo", "cifar10-small"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A packaged model, its engine, and a server of its repository."""
    bundle, folder = load_bundle(request.param), tmp_path_factory.mktemp("served") / "models"
    write_repository(bundle, folder)
    return bundle, open_engine(bundle, "cpu", "float32", threads=1), Server(folder)


@pytest.fixture(scope="module")
def _turbo(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("turbo") / "models"
    write_repository(load_bundle("cifar10-turbo"), folder)
    return Server(folder)


@pytest.fixture
def turbo(_turbo: Server) -> Server:
    """A server of cifar10-turbo that nobody has called yet."""
    _turbo.calls, _turbo.fail = [], ""
    return _turbo


def drawn(answer: Any) -> np.ndarray:
    """The pictures of an answer."""
    assert not isinstance(answer, TritonError), answer.message()
    return answer["picture"].astype(int)


def local(bundle: Bundle, engine: Engine, n: int, **settings: Any) -> np.ndarray:
    """The pictures of `rows(n)` as `generate` draws them."""
    classes = [k % 10 for k in range(n)]
    return np.concatenate([p for _, p in generate(engine, bundle, classes, seed=5, **settings)]).astype(int)


def test_the_network_answers_joined_requests_as_the_engine_does(served: Served) -> None:
    """Triton concatenates the inputs of requests: each then has guidance for all of its rows, w = 1 for none."""
    bundle, engine, server = served
    name, rng, requests = f"{bundle.name}_network", np.random.default_rng(0), []
    for n in (1, 3, 2, 7):
        x = normals(n, np.arange(n), 0, bundle.image_shape)
        t, label = rng.uniform(1, 999, n).astype(np.float32), rng.integers(0, 10, n)
        w = np.where(np.arange(n) % 2, rng.uniform(1, 6, n), 1).astype(np.float32)
        requests.append((x, t, label, w))
    joined = [np.concatenate(arrays) for arrays in zip(*requests, strict=True)]
    assert len(joined[0]) == len(joined[3]) == 13
    inputs = {"sample": joined[0], "timestep": joined[1][:, None], "class_label": joined[2][:, None]}
    ((answer),) = server.infer(name, inputs | {"guidance": joined[3][:, None]})
    assert isinstance(answer, dict)
    expected = []
    for x, t, label, w in requests:  # the engine with G < B: its unguided rows apart
        plain, part = w == 1, np.empty_like(x)
        for mask, guidance in ((plain, np.zeros(0, np.float32)), (~plain, w[~plain])):
            if mask.any():
                part[mask] = engine.predict(x[mask], t[mask], label[mask], guidance)
        expected.append(part)
    apart = np.abs(answer["prediction"] - np.concatenate(expected)).max()
    assert apart < 1e-5 * np.abs(answer["prediction"]).max()


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "guidance": 2.5}, {"guidance": 1.0}])
def test_pictures_are_those_of_cfgdiff_run(served: Served, settings: dict[str, Any]) -> None:
    bundle, engine, server = served
    (answer,) = server.infer(bundle.name, rows(5, **settings))
    assert np.abs(drawn(answer) - local(bundle, engine, 5, **settings)).max() <= 1


def test_a_seed_of_64_bits_and_an_index_draw_that_picture(served: Served) -> None:
    bundle, engine, server = served
    seed = 2**64 - 1
    (answer,) = server.infer(bundle.name, rows(2, seed=seed, index=[2**63 + 1, 0], guidance=[1, 4]))
    settings = {"seed": seed, "indices": [2**63 + 1, 0], "guidance": [1.0, 4.0]}
    ((_, expected),) = generate(engine, bundle, [0, 1], **settings)
    assert np.abs(drawn(answer) - expected.astype(int)).max() <= 1


def test_rows_do_not_depend_on_their_place_and_the_number_is_0_without_one(turbo: Server) -> None:
    first = rows(3, class_label=[1, 2, 3], seed=[7, 8, 9])
    del first["index"]
    turned = {name: array[::-1].copy() for name, array in first.items()}
    a, b, c = turbo.infer("cifar10-turbo", first, turned, rows(1, class_label=2, seed=8, index=0))
    assert np.abs(drawn(a) - drawn(b)[::-1]).max() <= 1 and np.abs(drawn(a)[1:2] - drawn(c)).max() <= 1


def test_requests_take_their_steps_together(turbo: Server) -> None:
    """Requests of 1, 2 and 4 steps: four calls, of fewer rows each time."""
    bundle = load_bundle("cifar10-turbo")
    answers = turbo.infer("cifar10-turbo", rows(2, steps=4), rows(3, steps=1), rows(1), rows(2, steps=4, guidance=1.5))
    assert [shapes["sample"][0] for _, shapes in turbo.calls] == [8, 5, 4, 4]
    assert all(name == "cifar10-turbo_network" for name, _ in turbo.calls)
    engine = open_engine(bundle, "cpu", "float32", threads=1)
    asked: list[dict[str, Any]] = [{"steps": 4}, {"steps": 1}, {}, {"steps": 4, "guidance": 1.5}]
    for answer, n, settings in zip(answers, (2, 3, 1, 2), asked, strict=True):
        assert np.abs(drawn(answer) - local(bundle, engine, n, **settings)).max() <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_label": [0, 10]}, r"class_label: expected 0 \.\. 9 \(airplane, .*, truck\), found 10"),
        ({"class_label": -1}, r"class_label: expected 0 \.\. 9 .*, found -1"),
        ({"steps": 5}, "steps: cifar10-turbo was trained for its own steps, 1, 2, 3, 4 in number"),
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"steps": [2, 4]}, "steps: expected the same number for all pictures of a request, found 2 and 4"),
        ({"steps": 1001}, "steps: expected at most 1000, as config.pbtxt allows, found 1001"),
        ({"guidance": [2, 9]}, "guidance: cifar10-turbo was trained for 1 .. 8, found 9"),
        ({"guidance": np.nan}, "guidance: "),
    ],
)
def test_a_wrong_request_is_one_line_and_does_not_hold_up_others(
    turbo: Server, more: dict[str, object], message: str
) -> None:
    before, wrong, after = turbo.infer("cifar10-turbo", rows(1), rows(2, **more), rows(1))
    assert isinstance(wrong, TritonError) and wrong.code() == TritonError.INVALID_ARG
    assert re.match(message, wrong.message()), wrong.message()
    assert np.array_equal(drawn(before), drawn(after))


def test_no_rows_are_an_error(turbo: Server) -> None:
    (answer,) = turbo.infer("cifar10-turbo", rows(0))
    assert isinstance(answer, TritonError) and "expected a row for each picture" in answer.message()


def test_a_cancelled_request_leaves_the_next_call(turbo: Server) -> None:
    stopped, kept = turbo.infer("cifar10-turbo", Incoming(rows(2, steps=4), cancelled_after=2), rows(1, steps=4))
    assert isinstance(stopped, TritonError) and stopped.code() == TritonError.CANCELLED
    assert drawn(kept).shape == (1, 32, 32, 3)
    assert [shapes["sample"][0] for _, shapes in turbo.calls] == [3, 3, 1, 1]


def test_a_network_that_fails_is_an_error_of_the_requests(turbo: Server) -> None:
    turbo.fail = "CUDA failure 2:\nout of memory"
    answers = turbo.infer("cifar10-turbo", rows(1), rows(2))
    assert [isinstance(answer, TritonError) and answer.code() for answer in answers] == [TritonError.INTERNAL] * 2
    assert isinstance(answers[0], TritonError)
    assert answers[0].message() == "cifar10-turbo_network: CUDA failure 2: out of memory"


def test_the_stand_in_refuses_what_triton_refuses(turbo: Server) -> None:
    for wrong, message in (
        ({"seed": rows(1)["seed"].astype(np.int32)}, "data-type"),
        ({"steps": np.full(1, 2, np.int32)}, "unexpected shape"),
        ({"prompt": rows(1)["seed"]}, "unexpected inference input"),
        (rows(257), "batch-size must be <= 256"),
        ({"seed": rows(2)["seed"]}, "batch size does not match"),
    ):
        with pytest.raises(Refused, match=message):
            turbo.infer("cifar10-turbo", rows(1) | wrong)


def test_guidance_is_the_number_that_was_written(packaged: Bundle, edited: Callable[..., Path], tmp_path: Path) -> None:
    """1.6 arrives as a float32, which is not 1.6 in float64; steps fitted for 1.6 are for it all the same."""

    def fit(tree: dict[str, Any]) -> None:
        tree["fitted"]["2"]["guidance"] = 1.6

    bundle = load_bundle(edited(fit))
    write_repository(bundle, tmp_path / "models")
    (answer,) = Server(tmp_path / "models").infer(bundle.name, rows(2, steps=2, guidance=1.6))
    engine = open_engine(bundle, "cpu", "float32", threads=1)
    fitted, plain = (local(bundle, engine, 2, steps=2, guidance=w) for w in (1.6, float(np.float32(1.6))))
    assert np.abs(fitted - plain).max() > 1
    assert np.abs(drawn(answer) - fitted).max() <= 1
