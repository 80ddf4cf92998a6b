"""`cfgdiff serve` under load, beside the servers that people write around a sampler, on one engine, in turns.

A server has two users: who asks for many pictures wants throughput, which is compared with `generate` for all pictures
at once; who asks for a single one while others ask for many wants it soon. Every picture of ours is compared with that
of `generate` for its seed.
"""

import base64
import io
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from cfgdiff.runtime import Bundle, Engine, Request, resolve, sample
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import NOTE
from cfgdiff.runtime.noise import normals
from cfgdiff.runtime.notes import model_note
from cfgdiff.runtime.server.drawing import Served
from cfgdiff.runtime.server.http import make_app
from cfgdiff.runtime.server.scheduler import Scheduler

from .peers import diffusers_sampler
from .serving_clients import Answer, client_process, drive
from .serving_peers import batched, one_by_one

if TYPE_CHECKING:
    from torch import nn

SIZES = (*[1] * 6, 2, 4, 8, 16, 32, 64)  # pictures of a request, at random
STEPS, SAMPLERS, WEIGHTS = (
    (4, 5, 8, 10),
    ("ddim", "dpmpp-2m", "unipc"),
    (1.0, 1.5, 3.0),
)  # diffusers needs divisors of T
BATCHES, TRIED = (8, 16, 32, 64, 128), 128  # of `generate`: those that are tried, and with how many pictures
WARM = 4  # clients of the turn that is not measured
PAUSE = 0.5  # seconds between turns: PyTorch's threads spin for a while
OURS, WHOLE = "cfgdiff serve", "generate"

Load = list[list[dict[str, Any]]]  # the bodies of each client
Pictures = dict[int, np.ndarray]  # by seed


class Turn(NamedTuple):
    """One turn of a server: pictures a second, and the seconds of each request for a single picture."""

    speed: float
    single: list[float]

    @property
    def late(self) -> float:
        """The 95th percentile."""
        return float(np.percentile(self.single, 95))


class Lent(WrappedEngine):
    """An engine that is used on after the scheduler closes it."""

    def close(self) -> None:
        """Leave it open."""


def serving_turns(
    bundle: Bundle, engine: Engine, network: "nn.Module | None", clients: int, requests: int, rounds: int,
    say: Callable[[str], object],
) -> tuple[int, dict[str, list[Turn]], float]:  # fmt: skip
    """Measure all servers, and `generate`, `rounds` times in turns.

    Args:
        network: the bundle's in PyTorch, for diffusers; None: without.
        requests: of each client, one after the other.
        say: gets the parts of the work.

    Returns:
        the best batch of `generate`, the turns by name, and the share of ours whose pixels all equal `generate`'s.

    Raises:
        Failure: an answer is not 200, a picture is missing, twice, or differs by more than a grey level.
    """
    say("the best batch of generate")
    batch, equal = best_batch(bundle, engine), list[bool]()
    turns: dict[str, list[Turn]] = defaultdict(list)
    with ExitStack() as stack:
        clients_of = stack.enter_context(client_process())
        say("servers")
        ports = {name: stack.enter_context(running(app)) for name, app in _apps(bundle, engine, network, batch).items()}
        for port in ports.values():
            _drive(clients_of, port, mixed_load(bundle, WARM, 2, rounds))
        for k in range(rounds):
            load = mixed_load(bundle, clients, requests, k)
            say(f"round {k + 1} of {rounds}: {sum(len(body['seed']) for body in chain(*load))} pictures")
            whole, seconds = drawn_at_once(bundle, engine, load, batch)
            turns[WHOLE].append(Turn(len(whole) / seconds, [seconds]))
            for name, port in ports.items():
                time.sleep(PAUSE)
                answers, seconds = _drive(clients_of, port, load)
                turns[name].append(Turn(len(whole) / seconds, _single(load, answers)))
                found = pictures_of(name, load, answers)
                if name == OURS:
                    equal += compared(found, whole)
    return batch, turns, float(np.mean(equal))


def _apps(bundle: Bundle, engine: Engine, network: "nn.Module | None", batch: int) -> dict[str, FastAPI]:
    """The servers by name."""
    note = model_note(bundle, engine)
    ours = make_app([Served(bundle, Scheduler(bundle, Lent(engine), most_waiting=1_000_000), note)])
    draw = partial(_generated, bundle, engine, batch)
    apps = {OURS: ours, "whole requests, one by one": one_by_one(draw), "whole requests, batched": batched(draw, batch)}
    return apps if network is None else apps | {"diffusers, one by one": one_by_one(_diffusers(bundle, network))}


def _generated(bundle: Bundle, engine: Engine, batch: int, request: Request) -> np.ndarray:
    plan = resolve(bundle, replace(request, batch=batch))
    return np.concatenate([pictures for _, pictures in sample(engine, plan)])


def _diffusers(bundle: Bundle, network: "nn.Module") -> Callable[[Request], np.ndarray]:
    """DDIM in diffusers, at as many evaluations as a request asks for, in the network's fastest form."""
    from .equal_work import fastest_form  # needs PyTorch

    _, fastest = fastest_form(network, bundle, 32, compiled=False)
    samplers = {n: diffusers_sampler(fastest, bundle, n) for n in {*_steps(bundle)} if bundle.schedule.T % n == 0}

    def draw(request: Request) -> np.ndarray:
        plan = resolve(bundle, request)
        noise = normals(plan.seeds, plan.indices, 0, bundle.image_shape)
        return samplers[plan.steps](noise, plan.labels, plan.weights.astype(np.float32))

    return draw


def _timed(work: Callable[..., object], *args: Any) -> float:
    started = time.perf_counter()
    work(*args)
    return time.perf_counter() - started


def best_batch(bundle: Bundle, engine: Engine) -> int:
    """The pictures at a time at which `generate` draws most a second, measured in turns; the first turn warms up."""
    sizes = [size for size in BATCHES if size <= engine.max_batch]
    request = Request([0] * TRIED, _steps(bundle)[0], WEIGHTS[-1])
    turns = [[_timed(_generated, bundle, engine, size, request) for size in sizes] for _ in range(4)]
    return sizes[int(np.min(turns[1:], axis=0).argmin())]


def _steps(bundle: Bundle) -> list[int]:
    """The numbers of steps in the load."""
    few = [n for n in sorted(bundle.fitted) if bundle.schedule.T % n == 0]
    return few if bundle.few_steps else list(STEPS)


def mixed_load(bundle: Bundle, clients: int, requests: int, number: int) -> Load:
    """The requests of each client: of `SIZES` pictures, with other classes, steps, w and, where it takes any, samplers.

    Every picture has a seed of its own; another `number` of a load gives others.
    """
    rng, first = random.Random(number), number << 32

    def body() -> dict[str, Any]:
        nonlocal first
        n = 1 if first == number << 32 else rng.choice(SIZES)  # however short the load, a picture is asked for alone
        first += n
        classes = [rng.choice(bundle.class_names) for _ in range(n)]
        asked = {"class": classes, "n": n, "seed": list(range(first - n, first)), "steps": rng.choice(_steps(bundle))}
        sampler = {} if bundle.few_steps else {"sampler": rng.choice(SAMPLERS)}
        return asked | {"guidance": rng.choice(WEIGHTS)} | sampler

    return [[body() for _ in range(requests)] for _ in range(clients)]


def drawn_at_once(bundle: Bundle, engine: Engine, load: Load, batch: int) -> tuple[Pictures, float]:
    """All pictures of a load by `generate`, those of equal steps and sampler together; and the seconds it took."""
    together: dict[tuple[int, str | None], list[dict[str, Any]]] = defaultdict(list)
    for body in sorted(chain(*load), key=lambda body: body["guidance"]):
        together[body["steps"], body.get("sampler")].append(body)
    found: Pictures = {}
    started = time.perf_counter()
    for (steps, sampler), bodies in together.items():
        seeds = [seed for body in bodies for seed in body["seed"]]
        weights = [body["guidance"] for body in bodies for _ in body["seed"]]
        request = Request([name for body in bodies for name in body["class"]], steps, weights, seeds, sampler)
        found |= zip(seeds, _generated(bundle, engine, batch, request), strict=True)
    return found, time.perf_counter() - started


@contextmanager
def running(app: FastAPI) -> Iterator[int]:
    """The port of a server on 127.0.0.1, which ends with the block."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False, backlog=2048))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise Failure("a server of the benchmark did not start")
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def _drive(clients: ProcessPoolExecutor, port: int, load: Load) -> tuple[list[list[Answer]], float]:
    bodies = [[json.dumps(body).encode() for body in of_client] for of_client in load]
    return clients.submit(drive, port, bodies).result()


def _single(load: Load, answers: list[list[Answer]]) -> list[float]:
    pairs = zip(chain(*load), chain(*answers), strict=True)
    return [answer.seconds for body, answer in pairs if body["n"] == 1]


def pictures_of(name: str, load: Load, answers: Sequence[Sequence[Answer]]) -> Pictures:
    """The pictures of a server's answers. Where they have notes, seeds are read from these.

    Raises:
        Failure: an answer is not 200, or a picture is missing or there twice.
    """
    found: Pictures = {}
    for body, answer in zip(chain(*load), chain(*answers), strict=True):
        if answer.status != 200:
            raise Failure(f"{name}: answered {answer.status} for {body['n']} pictures: {answer.body[:200]!r}")
        data = json.loads(answer.body)["data"]
        if len(data) != body["n"]:
            raise Failure(f"{name}: answered with {len(data)} pictures, expected {body['n']}")
        for seed, entry in zip(body["seed"], data, strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
            note = json.loads(getattr(image, "text", {}).get(NOTE, "{}"))
            if note.get("seed", seed) != seed or seed in found:
                raise Failure(f"{name}: drew seed {note.get('seed', seed)} where {seed} was asked for")
            found[seed] = np.asarray(image)
    return found


def compared(found: Pictures, whole: Mapping[int, np.ndarray]) -> list[bool]:
    """Whether each of our pictures equals that of `generate`. Raises `Failure` where one is a grey level further."""
    if found.keys() != whole.keys():
        raise Failure(f"{OURS}: expected {len(whole)} pictures, found {len(found)}")
    apart = {seed: int(np.abs(found[seed].astype(int) - whole[seed]).max()) for seed in whole}
    seed = max(apart, key=lambda seed: apart[seed])
    if apart[seed] > 1:
        raise Failure(f"{OURS}: the picture of seed {seed} differs from that of generate by {apart[seed]} grey levels")
    return [levels == 0 for levels in apart.values()]
