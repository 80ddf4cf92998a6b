"""A day's worth of requests in a short time: what the server keeps of each must not add up."""

import asyncio
import gc
import json
import resource
from pathlib import Path
from typing import Any

import pytest
from fakes import Halves

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

from cfgdiff.runtime import Bundle

CLIENTS, WARM = 16, 200
URL = "/v1/images/generations"


def resident() -> float:
    """Megabytes in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def asked(app: Any, seed: int) -> bytes:
    """The body of the answer to one request, straight from the app."""
    body = json.dumps({"prompt": "frog", "steps": 1, "seed": seed}).encode()
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": URL, "raw_path": URL.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip
    sent, given = list[dict[str, Any]](), [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await asyncio.Event().wait()  # the client stays
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return b"".join(message.get("body", b"") for message in sent[1:])


async def soaked(app: Any, n: int) -> list[float]:
    """The memory after a warm start, in the middle and at the end of n requests, several at once."""
    numbers, found = iter(range(n)), list[float]()

    async def client() -> None:
        for k in numbers:
            note = json.loads(await asked(app, k))["data"][0]["note"]
            assert note["seed"] == k and note["steps"] == 1
            if k in (WARM, n // 2):
                found.append(resident())

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return [*found, resident()]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which Linux has")
def test_memory_stays_flat(turbo: Bundle, request: pytest.FixtureRequest) -> None:
    from cfgdiff.runtime.server.drawing import Served
    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.scheduler import Scheduler

    n = request.config.getoption("--soak-n")
    note = {"model": turbo.name, "model_sha256": "0" * 64, "engine": "halves", "precision": "float32"}
    with Scheduler(turbo, Halves(), rows=32) as scheduler:
        begin, middle, end = asyncio.run(soaked(make_app([Served(turbo, scheduler, note)]), n))
        stats = scheduler.stats()
    print(f"{n} requests: {begin:.1f} MB after {WARM}, {middle:.1f} in the middle, {end:.1f} at the end")
    assert (stats["jobs"], stats["pictures_total"], stats["jobs_finished_total"]) == (0, n, n)
    assert end < begin + 10 and end < middle + 5
