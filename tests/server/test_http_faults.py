"""Clients that never read, and bodies that make no sense."""

import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'cfgdiff[serve]' httpx")

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
