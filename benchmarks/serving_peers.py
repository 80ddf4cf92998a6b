"""Servers as people write them around a sampler: FastAPI, and whole requests, one after the other or batched.

They answer in OpenAI's form; pictures are encoded in other threads while the next ones are drawn.
"""

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from cfgdiff.runtime import Request
from cfgdiff.runtime.images import encoded

from .serving_clients import URL

Draw = Callable[[Request], np.ndarray]  # -> (N, H, W, C) uint8


class Body(BaseModel):
    """A request for one picture of each class, with a seed each."""

    classes: list[str] = Field(alias="class")
    seed: list[int]
    steps: int
    guidance: float
    sampler: str | None = None


Waiting = tuple[Body, asyncio.Future[np.ndarray]]


def one_by_one(draw: Draw) -> FastAPI:
    """A server that draws whole requests, one after the other, in the order in which they come."""
    app, turn = FastAPI(), asyncio.Lock()

    @app.post(URL)
    async def generate(body: Body) -> Response:
        async with turn:
            pictures = await run_in_threadpool(draw, request_of([body]))
        return await run_in_threadpool(answer, pictures)

    return app


def batched(draw: Draw, most: int) -> FastAPI:
    """A server that draws the request that waits longest, together with the others of its steps and sampler.

    Classes, seeds and guidance differ within a batch, for `generate` takes one of each for every picture.

    Args:
        most: pictures of a batch; a request of more is a batch of its own.
    """
    waiting, arrived = deque[Waiting](), asyncio.Event()

    async def work() -> None:
        while True:
            await arrived.wait()
            batch = take(waiting, most)
            if not waiting:
                arrived.clear()
            try:
                pictures = await run_in_threadpool(draw, request_of([body for body, _ in batch]))
            except Exception as error:
                for _, done in batch:
                    done.set_exception(error)
                continue
            for body, done in batch:
                done.set_result(pictures[: len(body.seed)])
                pictures = pictures[len(body.seed) :]

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=life)

    @app.post(URL)
    async def generate(body: Body) -> Response:
        done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        waiting.append((body, done))
        arrived.set()
        return await run_in_threadpool(answer, await done)

    return app


def take(waiting: deque[Waiting], most: int) -> list[Waiting]:
    """The next batch: the oldest, and in their order those of equal settings that fit."""
    batch = [waiting.popleft()]
    first, room = batch[0][0], most - len(batch[0][0].seed)
    for entry in list(waiting):
        body = entry[0]
        if (body.steps, body.sampler) == (first.steps, first.sampler) and len(body.seed) <= room:
            batch.append(entry)
            waiting.remove(entry)
            room -= len(body.seed)
    return batch


def request_of(bodies: Sequence[Body]) -> Request:
    """All pictures of some bodies of equal settings."""
    return Request(
        [name for body in bodies for name in body.classes], bodies[0].steps,
        [body.guidance for body in bodies for _ in body.seed], [seed for body in bodies for seed in body.seed],
        bodies[0].sampler,
    )  # fmt: skip


def answer(pictures: np.ndarray) -> Response:
    """Pictures as OpenAI's clients read them."""
    return JSONResponse({"data": [{"b64_json": base64.b64encode(encoded(each)).decode()} for each in pictures]})
