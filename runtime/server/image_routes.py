"""The routes of pictures: OpenAI's image generation, as one answer or as a stream, and the pictures behind URLs."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import anyio
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..errors import BadInput
from ..plan import Plan
from .answers import Images, answers
from .bodies import Generation, check_rows, plan_of
from .drawing import Drawn, Gathered, events, in_thread, in_time, one_by_one, thinned, watched
from .refusals import Refused
from .scheduler import Job
from .shared import Server, size_of

GRACE = 5.0  # seconds in which a client reads what was drawn just in time


def add_image_routes(app: FastAPI, server: Server) -> None:
    """Adds them to the app."""

    @app.post(
        "/v1/images/generations", response_model=None,
        responses=answers(Images, 404, 429, 500, 503, 504, kinds=("text/event-stream",)),
    )  # fmt: skip
    async def generate(body: Generation, request: Request) -> Response:
        """Draw pictures, as OpenAI's clients ask for them; with `stream`, as server-sent events."""
        server.check_open()
        if body.stream and body.response_format == "url":
            raise BadInput("response_format: a stream holds the pictures themselves; leave it out")
        if body.partial_images and not body.stream:
            raise BadInput("partial_images: previews are for streams; add `stream`, or leave it out")
        served = server.model(body.model)
        plan = plan_of(body, served.bundle, server.limits.pictures)
        check_rows(plan, server.limits)
        previews = body.partial_images or 0
        if body.stream:
            job = served.submit(plan, seconds=server.limits.seconds, watch=previews > 0)
            given = map(partial(served.drawn, plan), thinned(events(job), plan.steps, previews))
            return EventStream(job, _frames(plan, one_by_one(given, server.threads)), server.limits.seconds + GRACE)
        gathered = Gathered()
        job = served.submit(plan, seconds=server.limits.seconds, on_event=gathered)
        with watched(request.receive, job), in_time(server.limits):
            pictures = await gathered.pictures()
            drawn = await in_thread(lambda: [served.drawn(plan, each) for each in pictures], server.encoders)
        shown = partial(_entry, server, str(request.base_url) if body.response_format == "url" else None)
        return JSONResponse(
            {"created": int(time.time()), "size": size_of(plan.bundle), "output_format": "png",
             "data": [shown(one) for one in sorted(drawn, key=lambda one: one.i)]}
        )  # fmt: skip

    @app.get("/images/{name}.png", responses=answers(None, 404, kinds=("image/png",)), response_class=Response)
    async def image(name: str) -> Response:
        """A picture that was asked for by response_format url. It is kept for an hour at most."""
        png = server.kept.get(name)
        if png is None:
            raise Refused(404, "there is no such picture, or no more; draw it again from its note")
        return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _entry(server: Server, base: str | None, one: Drawn) -> dict[str, Any]:
    """A picture in the answer of a generation."""
    assert one.note is not None
    more = {"revised_prompt": one.note["class"], "note": one.note}
    if base is None:
        return {"b64_json": one.base64} | more
    name = secrets.token_urlsafe(16)
    server.kept.put(name, one.png)
    return {"url": f"{base}images/{name}.png"} | more


class EventStream(StreamingResponse):
    """Server-sent events of a job, which is cancelled when they end, also before the first one."""

    def __init__(self, job: Job, content: AsyncIterator[bytes], seconds: float) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._job, self._seconds = job, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            with anyio.move_on_after(self._seconds):  # a client that never reads
                await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _frames(plan: Plan, drawn: AsyncIterator[Drawn]) -> AsyncIterator[bytes]:
    """The events of OpenAI's image streams, with the picture's number and note beside."""
    previews = dict[int, int]()
    try:
        async for one in drawn:
            event: dict[str, Any] = {"b64_json": one.base64, "created_at": int(time.time()), "index": one.i}
            event |= {"output_format": "png", "size": size_of(plan.bundle), "quality": "auto", "background": "opaque"}
            if one.note is None:
                previews[one.i] = previews.get(one.i, -1) + 1
                yield frame("image_generation.partial_image", event | {"partial_image_index": previews[one.i]})
            else:
                yield frame("image_generation.completed", event | {"note": one.note})
    except Refused as refused:
        yield frame("error", refused.body)


def frame(kind: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | dict(data))}\n\n".encode()
