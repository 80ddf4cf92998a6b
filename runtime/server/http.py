"""The HTTP interface: OpenAI's image generation, models, jobs, health, figures and the page, as one FastAPI app.

It decides nothing about pictures: `plan_of` reads a request, the scheduler draws it, and answers carry notes.
"""

import base64
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..bundle import Bundle
from ..engines import own_version
from ..errors import BadInput, named
from ..plan import Plan
from ..samplers import SAMPLERS
from .bodies import Generation, Order, Pictures, check_rows, plan_of, problem
from .drawing import Drawn, Kept, Served, events, in_thread, in_time, one_by_one, thinned, watched
from .guard import Guard, answer
from .job_routes import add_job_routes
from .limits import Limits
from .metrics import Metrics
from .orders import Orders
from .refusals import Refused, bad_input, broken, closing
from .scheduler import Job

log = logging.getLogger("cfgdiff.server")
GRACE = 5.0  # seconds in which a client reads what was drawn just in time
PAGE = Path(__file__).with_name("page.html")
BODIES: dict[str, type[Pictures]] = {"/v1/images/generations": Generation, "/v1/jobs": Order}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "A parameter makes no sense.", 401: "The token is missing or wrong.", 404: "There is none of that name.",
        413: "The body is too large.", 429: "The queue is full; see Retry-After.", 503: "The server is shutting down.",
    }.items()
}  # fmt: skip


class Server:
    """What the routes share.

    Attributes:
        models: the models by name; the first is the default.
        draining: no request is accepted any more.
    """

    def __init__(self, served: Sequence[Served], limits: Limits) -> None:
        self.models: dict[str, Served] = {}
        for one in served:
            if one.bundle.name in self.models:
                raise BadInput(f"model: expected models of different names, found {one.bundle.name} twice")
            self.models[one.bundle.name] = one
        self.limits, self.kept, self.draining = limits, Kept(limits), False
        self.threads = anyio.CapacityLimiter(limits.waiting)

    def model(self, name: str | None) -> Served:
        """The model of a request. Raises `Refused`."""
        if name is None:
            return next(iter(self.models.values()))
        try:
            return self.models[named("model", "model", name[:100], self.models)]
        except BadInput as error:
            raise Refused(404, str(error), "model", "model_not_found") from None

    def check_open(self) -> None:
        """Raises `Refused` where the server accepts nothing any more."""
        if self.draining:
            raise closing()


def make_app(
    served: Sequence[Served],
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    orders: Orders | None = None,
) -> FastAPI:
    """The app. Its end drains the schedulers.

    Args:
        token: what clients must send as a bearer token; None: nothing.
        origins: of other sites whose pages may use this server, as https://example.org.
        orders: where jobs are kept; None: there are no jobs.

    Raises:
        BadInput: two models have one name.
    """
    limits = limits or Limits()
    server = Server(served, limits)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if orders is not None:
            orders.start()
        yield
        server.draining = True
        if orders is not None:
            await anyio.to_thread.run_sync(orders.close)
        for one in server.models.values():
            await anyio.to_thread.run_sync(partial(one.scheduler.close, drain=True))

    app = FastAPI(title="cfgdiff", version=own_version(), docs_url=None, redoc_url=None, lifespan=life)
    app.state.server, metrics = server, Metrics(server.models)
    _add_errors(app)
    _add_images(app, server)
    _add_models(app, server)
    _add_health(app, server, metrics)
    add_job_routes(app, server, orders)
    app.add_middleware(Guard, limits=limits, token=token, metrics=metrics)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    return app


def _add_errors(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answer(error)

    async def bad(_: Request, error: Exception) -> Response:
        assert isinstance(error, BadInput)
        return answer(bad_input(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, field = problem(error.errors(), BODIES.get(request.url.path, Pictures))
        return answer(Refused(400, message, field, "invalid_value"))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(Refused(error.status_code, str(error.detail).lower(), code=None))

    async def other(_: Request, error: Exception) -> Response:
        return answer(broken(repr(error)))  # the server logs its traceback, too

    handlers = {Refused: refused, BadInput: bad, RequestValidationError: invalid, HTTPException: http, Exception: other}
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _add_images(app: FastAPI, server: Server) -> None:
    @app.post("/v1/images/generations", responses=ERRORS, response_model=None)
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
        job = served.submit(plan, seconds=server.limits.seconds, watch=previews > 0)
        if body.stream:
            given = map(partial(served.drawn, plan), thinned(events(job), plan.steps, previews))
            return EventStream(job, _frames(plan, one_by_one(given, server.threads)), server.limits.seconds + GRACE)
        with watched(request.receive, job), in_time(server.limits):
            drawn = await in_thread(lambda: [served.drawn(plan, event) for event in events(job)], server.threads)
        shown = partial(_entry, server, str(request.base_url) if body.response_format == "url" else None)
        return JSONResponse(
            {"created": int(time.time()), "size": _size(plan.bundle), "output_format": "png",
             "data": [shown(one) for one in sorted(drawn, key=lambda one: one.i)]}
        )  # fmt: skip

    @app.get("/images/{name}.png", responses={404: ERRORS[404]}, response_class=Response)
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
            event |= {"output_format": "png", "size": _size(plan.bundle), "quality": "auto", "background": "opaque"}
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


def _size(bundle: Any) -> str:
    _, h, w = bundle.image_shape
    return f"{w}x{h}"


def _add_models(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> dict[str, Any]:
        """The models, with what they draw and what they take."""
        return {"object": "list", "data": [described(one.bundle) for one in server.models.values()]}

    @app.get("/v1/models/{name}", responses={status: ERRORS[status] for status in (401, 404)})
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return described(server.model(name).bundle)


def described(bundle: Bundle) -> dict[str, Any]:
    """A model as OpenAI's clients list it, with what requests may say of it."""
    defaults, fitted = bundle.defaults, sorted(bundle.fitted)
    return {
        "id": bundle.name, "object": "model", "created": int((bundle.path / "bundle.json").stat().st_mtime),
        "owned_by": "cfgdiff", "classes": bundle.class_names, "size": _size(bundle),
        "steps": defaults.steps, "guidance": defaults.guidance,
        "choices": {
            "steps": fitted if bundle.few_steps else None, "guidance": bundle.guidance_input,
            "sampler": ["fitted"] if bundle.few_steps else [*SAMPLERS, *(["fitted"] if fitted else [])],
        },
    }  # fmt: skip


def _add_health(app: FastAPI, server: Server, metrics: Metrics) -> None:
    text = PAGE.read_text(encoding="utf-8")
    policy = content_policy(text)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """The page."""
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return HTMLResponse(text, headers=headers | {"referrer-policy": "no-referrer"})

    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def ready() -> dict[str, str]:
        """It accepts requests."""
        server.check_open()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={401: ERRORS[401]})
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)


def content_policy(page: str) -> str:
    """A policy by which a browser runs only the page's own script and style, and reads from this server alone."""

    def hashes(tag: str) -> str:
        digests = [
            hashlib.sha256(part.encode()).digest() for part in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        ]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
