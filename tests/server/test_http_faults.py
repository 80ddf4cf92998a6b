"""Clients that never read, bodies that make no sense, and an engine that fails."""

import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from fakes import Formula, wait

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.server.bodies import Generation

URL = "/v1/images/generations"


def test_a_client_that_never_reads_is_left_in_time() -> None:
    import anyio

    from cfgdiff.runtime.server.image_routes import EventStream

    class Cancelled:
        count = 0

        def cancel(self) -> None:
            self.count += 1

    async def forever(*_: Any) -> Any:
        await anyio.sleep_forever()

    async def content() -> AsyncIterator[bytes]:
        yield b"event: a"

    job = Cancelled()
    started = time.monotonic()
    anyio.run(EventStream(job, content(), 0.05), {"type": "http", "method": "POST"}, forever, forever)  # type: ignore[arg-type]
    assert job.count == 1 and time.monotonic() - started < 2


VALUES = [
    None, True, -1, 0, 1, 3, 10**30, 0.5, -0.0, 1e308, "", "frog", "3 frogs, 1 ship", "cifar10-small", "unipc", "url",
    "\x00", "é" * 40, [], [1], ["frog", 2], [[]], {}, {"seed": 1}, {"seed": [1, 2], "share": [0.5], "class": "ship"},
]  # fmt: skip


@pytest.mark.parametrize("path", [URL, "/v1/jobs"])
def test_no_body_makes_the_server_fail(client: Any, path: str) -> None:
    """Seeded random bodies: an answer of 2xx or 4xx, in one line, that quotes no path of this machine."""
    rng = np.random.default_rng(0)
    names = [*Generation.model_json_schema()["properties"], "format", "other"]
    for _ in range(300):
        chosen = rng.choice(names, rng.integers(0, 5), replace=False)
        body = {"class": "frog"} | {name: VALUES[rng.integers(len(VALUES))] for name in chosen}
        answer = client.post(path, json=body)
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code >= 400:
            message = answer.json()["error"]["message"]
            assert "\n" not in message and "runtime" not in message and "Traceback" not in message


class Breaking(Formula):
    """Fails at its 100th call and at the next one, whichever engine of this kind gets them."""

    made, count = 0, 0

    def __init__(self) -> None:
        super().__init__()
        Breaking.made += 1

    def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        Breaking.count += 1
        if Breaking.count in (100, 101):
            raise RuntimeError("/secret/place: out of memory")
        return super().predict(*inputs)


def test_an_engine_that_fails_at_its_hundredth_call_costs_one_request(turbo: Bundle) -> None:
    from fastapi.testclient import TestClient

    from cfgdiff.runtime.server.drawing import Served
    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.scheduler import Scheduler

    Breaking.made = Breaking.count = 0
    scheduler = Scheduler(turbo, Breaking(), rows=2, reopen=lambda _: Breaking())
    note = {"model": turbo.name, "model_sha256": "0" * 64, "engine": "formula", "precision": "float32"}
    with TestClient(make_app([Served(turbo, scheduler, note)])) as client, ThreadPoolExecutor(8) as pool:
        bodies = [{"prompt": "frog", "steps": 2, "seed": seed} for seed in range(160)]
        found = list(pool.map(lambda body: client.post(URL, json=body), bodies))
    statuses = Counter(answer.status_code for answer in found)
    assert statuses == {200: 159, 500: 1} and Breaking.made == 2 and Breaking.count > 101
    seeds = [answer.json()["data"][0]["note"]["seed"] for answer in found if answer.status_code == 200]
    (failed,) = [answer for answer in found if answer.status_code == 500]
    assert len(set(seeds)) == 159 and "secret" not in failed.text


def test_clients_that_never_read_hold_up_nobody(running: Callable[..., str], scheduler: Any) -> None:
    import httpx

    port = int(running().rsplit(":", 1)[1])
    body = json.dumps({"prompt": "frog", "n": 256, "response_format": "b64_json"})
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall((head + body).encode())
        wait(lambda: len(scheduler.jobs) == 10 and all(job.done == 256 for job in scheduler.jobs))
        answer = httpx.post(f"http://127.0.0.1:{port}{URL}", json={"prompt": "frog", "n": 2}, timeout=20)
        assert answer.status_code == 200 and len(answer.json()["data"]) == 2


@pytest.mark.parametrize(
    "body",
    [b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}', b'{"seed": 1e400}', b'{"guidance": NaN}',
     b'{"guidance": -Infinity}',
     b'{"n": ' + b"9" * 5000 + b"}", b"[" * 50_000, b'{"\\u0000": 1}'],
)  # fmt: skip
@pytest.mark.parametrize("path", [URL, "/v1/jobs"])
def test_text_and_numbers_that_json_can_hold_are_400(client: Any, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "\n" not in answer.json()["error"]["message"] and len(answer.content) < 1000
