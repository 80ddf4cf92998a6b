"""Clients of `cfgdiff bench serve`, in a process of their own, so that their work stands in no server's way.

They know HTTP and nothing of pictures: answers are read when the time has been taken.
"""

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

URL = "/v1/images/generations"
PATIENCE = 600.0  # seconds for one answer


class Answer(NamedTuple):
    """To one request: how long it took from its first byte to the last of the answer, the status and the body."""

    seconds: float
    status: int
    body: bytes


@contextmanager
def client_process() -> Iterator[ProcessPoolExecutor]:
    """The process for `drive`."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def drive(port: int, bodies: Sequence[Sequence[bytes]]) -> tuple[list[list[Answer]], float]:
    """Send the bodies of each client one after the other, all clients at once.

    Returns:
        the answers of each client, and the seconds from the first request to the last answer.
    """
    answers: list[list[Answer]] = [[] for _ in bodies]
    start = threading.Barrier(len(bodies) + 1)
    threads = [
        threading.Thread(target=_client, args=(port, *pair, start)) for pair in zip(bodies, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return answers, time.perf_counter() - started


def _client(port: int, bodies: Sequence[bytes], answers: list[Answer], start: threading.Barrier) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.connect()
    finally:
        start.wait()
    for body in bodies:
        started = time.perf_counter()
        connection.request("POST", URL, body, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        answers.append(Answer(time.perf_counter() - started, response.status, content))
    connection.close()
