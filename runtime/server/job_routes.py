"""The routes of jobs. Jobs themselves are drawn by orders.py."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI
from starlette.responses import FileResponse, StreamingResponse

from .answers import Deleted, JobAnswer, Jobs, answers
from .bodies import Order
from .orders import DONE, UNFINISHED, Entry, Orders
from .refusals import Refused
from .shared import Server

PAUSE, SILENCE = 0.2, 15.0  # seconds between looks at a job; after which a comment keeps the connection alive
TYPES = {"tar": "application/x-tar", "npz": "application/zip"}


def add_job_routes(app: FastAPI, server: Server, orders: Orders | None) -> None:
    """Adds them to the app; without `orders` they all answer that there are none."""

    def kept() -> Orders:
        if orders is None:
            raise Refused(404, "this server takes no jobs: it was started without a folder for them", code="no_jobs")
        return orders

    @app.post("/v1/jobs", status_code=202, responses=answers(JobAnswer, 404, 429, 503, status=202), response_model=None)
    async def create(body: Order) -> dict[str, Any]:
        """Order many pictures. They are drawn in the background into a file."""
        server.check_open()
        add = partial(kept().add, body.model_copy(update={"model": server.model(body.model).bundle.name}))
        return (await anyio.to_thread.run_sync(add)).public  # a million names take a while

    @app.get("/v1/jobs", responses=answers(Jobs, 404), response_model=None)
    async def listed() -> dict[str, Any]:
        """All jobs, the oldest first."""
        return {"object": "list", "data": [entry.public for entry in kept().all()]}

    @app.get("/v1/jobs/{name}", responses=answers(JobAnswer, 404), response_model=None)
    async def state(name: str) -> dict[str, Any]:
        """How far a job is."""
        return kept().get(name).public

    @app.delete("/v1/jobs/{name}", responses=answers(Deleted, 404), response_model=None)
    async def remove(name: str) -> dict[str, Any]:
        """Stop a job, and remove its result."""
        kept().remove(name)
        return {"id": name, "object": "job", "deleted": True}

    _add_results(app, server, kept)


def _add_results(app: FastAPI, server: Server, kept: Callable[[], Orders]) -> None:
    """Those of a job's file and progress."""

    @app.get(
        "/v1/jobs/{name}/result", response_class=FileResponse,
        responses=answers(None, 404, 409, kinds=tuple(TYPES.values())),
    )  # fmt: skip
    async def result(name: str) -> FileResponse:
        """The file of a job that is done."""
        entry = kept().get(name)
        if entry.status != DONE:
            raise Refused(409, f"the job is {entry.status}, with {entry.done} of {entry.n} pictures", code="not_done")
        kind = entry.body.format
        return FileResponse(kept().result(entry), media_type=TYPES[kind], filename=f"{name}.{kind}")

    @app.get(
        "/v1/jobs/{name}/events", response_class=StreamingResponse,
        responses=answers(None, 404, kinds=("text/event-stream",)),
    )  # fmt: skip
    async def events(name: str) -> StreamingResponse:
        """The progress of a job as server-sent events, with previews of the first pictures that are drawn now."""
        stream = _events(server, kept().get(name))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(server: Server, entry: Entry) -> AsyncIterator[str]:
    """`progress` where something changed, `preview` for each new preview, `end` at the end."""
    shown, previews, silent = None, dict[int, bytes](), 0.0
    entry.watchers += 1
    try:
        while True:
            state, new = entry.public, dict(entry.previews)
            for i, png in new.items():
                if previews.get(i) != png:
                    yield _event("preview", {"index": i, "b64_json": base64.b64encode(png).decode()})
            if state != shown:
                yield _event("progress", state)
            silent = 0.0 if state != shown or new != previews else silent + PAUSE
            if silent >= SILENCE:
                silent = 0.0
                yield ": still there\n\n"
            shown, previews = state, new
            if state["status"] not in UNFINISHED or entry.stopped or server.draining:
                yield _event("end", state)
                return
            await anyio.sleep(PAUSE)
    finally:
        entry.watchers -= 1


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
