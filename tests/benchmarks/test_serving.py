"""The comparison of servers, on an engine whose time is per call, over HTTP."""

import base64
import json
import time
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]'")

from cfgdiff.benchmarks import serving
from cfgdiff.benchmarks.serving import OURS, WHOLE, Turn, best_batch, compared, mixed_load, pictures_of, serving_turns
from cfgdiff.benchmarks.serving_clients import Answer
from cfgdiff.benchmarks.serving_peers import Body, take
from cfgdiff.benchmarks.serving_report import serving_table
from cfgdiff.cli.bench import bench
from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import encoded


class PerCall:
    """Takes 3 ms a call, for any number of rows up to 64. With `drifting` its answers depend on how many there are."""

    name, precision, max_batch = "cpu", "float32", 64

    def __init__(self, drifting: float = 0.0) -> None:
        self.drifting = drifting

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        time.sleep(0.003)
        return sample * np.float32(0.5 + self.drifting * len(sample))

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def turbo() -> Bundle:
    return load_bundle("cifar10-turbo")


def test_all_servers_draw_the_same_load(turbo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PAUSE", 0)
    said: list[str] = []
    batch, turns, equal = serving_turns(turbo, PerCall(), None, clients=12, requests=2, rounds=1, say=said.append)
    assert batch in (8, 16, 32, 64) and equal == 1 and said[-1].startswith("round 1 of 1: ")
    assert list(turns) == [WHOLE, OURS, "whole requests, one by one", "whole requests, batched"]
    ours, *others = (turns[name][0] for name in list(turns)[1:])
    assert all(len(ours.single) == len(other.single) > 3 and other.speed > 0 for other in others)


def test_pictures_that_differ_are_no_result(turbo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PAUSE", 0)
    with pytest.raises(Failure, match=r"cfgdiff serve: the picture of seed \d+ differs .* by \d+ grey levels"):
        serving_turns(turbo, PerCall(0.01), None, clients=4, requests=1, rounds=1, say=lambda _: None)


def test_the_load_is_mixed_and_repeats(packaged: Bundle, turbo: Bundle) -> None:
    bodies = [body for client in mixed_load(packaged, 40, 4, 1) for body in client]
    seeds = [seed for body in bodies for seed in body["seed"]]
    assert {1, 64} <= {body["n"] for body in bodies} and len({body["sampler"] for body in bodies}) == 3
    assert {body["steps"] for body in bodies} == {4, 5, 8, 10} and {body["guidance"] for body in bodies} == {1, 1.5, 3}
    assert len(set(seeds)) == len(seeds) == sum(len(body["class"]) for body in bodies)
    assert bodies == [body for client in mixed_load(packaged, 40, 4, 1) for body in client]
    few = [body for client in mixed_load(turbo, 40, 1, 2) for body in client]
    assert {body["steps"] for body in few} == {1, 2, 4} and not any("sampler" in body for body in few)
    assert not set(seeds) & {seed for body in few for seed in body["seed"]}


def test_the_best_batch_is_the_fastest(turbo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(PerCall):
        """10 seconds a call, and one for each row above 16, by its own clock."""

        now = 0.0

        def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
            self.now += 10 + max(0, len(inputs[0]) - 16)
            return inputs[0]

    engine = Clock()
    monkeypatch.setattr(serving, "time", SimpleNamespace(perf_counter=lambda: engine.now))
    assert best_batch(turbo, engine) == 16
    engine.predict = lambda *inputs: (setattr(engine, "now", engine.now + 10), inputs[0])[1]  # type: ignore[method-assign]
    assert best_batch(turbo, engine) == 64  # the largest that it takes


def body(n: int, steps: int = 2, **more: Any) -> Body:
    return Body.model_validate({"class": ["frog"] * n, "seed": list(range(n)), "steps": steps, "guidance": 1.5} | more)


def test_a_batch_is_the_oldest_request_and_its_like() -> None:
    bodies = [body(4), body(2, steps=1), body(3, guidance=3.0), body(8), body(1), body(2, sampler="ddim"), body(64)]
    waiting = deque((each, None) for each in bodies)
    batches = []
    while waiting:
        batches.append([bodies.index(each) for each, _ in take(waiting, 8)])  # type: ignore[arg-type]
    assert batches == [[0, 2, 4], [1], [3], [5], [6]]


def answers(seeds: list[int], status: int = 200) -> list[list[Answer]]:
    shown = [{"b64_json": base64.b64encode(encoded(np.full((32, 32, 3), 7, np.uint8), note={"seed": seed})).decode()}
             for seed in seeds]  # fmt: skip
    return [[Answer(0.1, status, json.dumps({"data": shown}).encode())]]


@pytest.mark.parametrize(
    ("seeds", "status", "message"),
    [([5], 200, "answered with 1 pictures, expected 2"), ([5, 5], 200, "drew seed 5 where 6 was asked for"),
     ([6, 5], 200, "drew seed 6 where 5"), ([5, 6], 500, "answered 500 for 2 pictures")],
)  # fmt: skip
def test_a_picture_that_is_lost_or_twice_is_no_result(seeds: list[int], status: int, message: str) -> None:
    load = [[{"n": 2, "seed": [5, 6]}]]
    assert pictures_of(OURS, load, answers([5, 6])).keys() == {5, 6}
    with pytest.raises(Failure, match=message):
        pictures_of(OURS, load, answers(seeds, status))


def test_one_grey_level_is_the_most() -> None:
    whole = {5: np.full((2, 2, 3), 7, np.uint8), 6: np.full((2, 2, 3), 7, np.uint8)}
    assert compared({5: whole[5] + np.uint8(1), 6: whole[6]}, whole) == [False, True]
    with pytest.raises(Failure, match="seed 6 differs from that of generate by 2 grey levels"):
        compared({5: whole[5], 6: whole[6] - np.uint8(2)}, whole)
    with pytest.raises(Failure, match="expected 2 pictures, found 1"):
        compared({5: whole[5]}, whole)


def test_the_table_has_ratios_within_rounds() -> None:
    singles = [list(map(float, range(101))), [2 * second for second in range(101)]]
    turns = {
        WHOLE: [Turn(100, [1.0]), Turn(50, [1.0])],
        OURS: [Turn(90, [second / 5 for second in singles[0]]), Turn(47.5, [second / 5 for second in singles[1]])],
        "other": [Turn(50, singles[0]), Turn(50, singles[1])],
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in serving_table(turns).splitlines()]
    values = {name: cells for name, *cells in lines}
    assert values[OURS] == ["69", "0.93 (0.90 .. 0.95)", "13.30", "28.50", ""]
    assert values["other"] == ["50", "0.75 (0.50 .. 1.00)", "66.50", "142.50", "5.0 (5.0 .. 5.0)"]


def test_diffusers_draws_what_is_asked_for(turbo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    pytest.importorskip("diffusers", reason="the peer library is missing: pip install 'cfgdiff[dev]'")
    from cfgdiff.benchmarks import equal_work
    from cfgdiff.benchmarks.peers import torch_network
    from cfgdiff.runtime import Request, draw

    torch.set_num_threads(1)
    monkeypatch.setattr(equal_work, "forms", lambda network, compiled: {"eager": network})
    asked = Request(["frog", "ship"], 2, [1.5, 3.0], [7, 8])
    drawn = serving._diffusers(turbo, torch_network(turbo))(asked)
    ours = draw(turbo, ["frog", "ship"], steps=2, guidance=[1.5, 3.0], seed=[7, 8]).astype(int)
    assert drawn.shape == ours.shape and drawn.dtype == np.uint8
    # Other steps of the same network from the same noise: similar pictures, and not each other's.
    apart = [[np.abs(a - b.astype(int)).mean() for b in drawn] for a in ours]
    assert apart[0][0] < apart[0][1] / 2 and apart[1][1] < apart[1][0] / 2


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Opened(PerCall):
        def __enter__(self) -> "Opened":
            return self

        def __exit__(self, *error: object) -> None: ...

    def open_engine(*args: object) -> Opened:
        opened.append(args[1:])
        return Opened()

    monkeypatch.setattr("cfgdiff.runtime.open_engine", open_engine)
    monkeypatch.setattr("cfgdiff.cli.bench._network", lambda *_: None)
    monkeypatch.setattr(serving, "PAUSE", 0)
    args = ["serve", "--engine", "cpu", "--clients", "3", "--requests", "1", "--rounds", "1", "--threads", "2"]
    made = CliRunner().invoke(bench, args, catch_exceptions=False)
    assert made.exit_code == 0 and "cifar10-turbo, cpu float32; 3 clients, 1 requests each" in made.output
    assert "none is missing, none is there twice, 100.0% are those of generate" in made.output
    assert opened == [("cpu", "auto", 2)] and Counter(made.output.split())["cfgdiff"] >= 2
