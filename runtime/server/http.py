"""The HTTP interface: OpenAI's image generation, models, jobs, health, figures and the page, as one FastAPI app.

It decides nothing about pictures: `plan_of` reads a request, the scheduler draws it, and answers carry notes.
"""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
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
from starlette.responses import HTMLResponse, Response

from ..bundle import Bundle
from ..engines import own_version
from ..errors import BadInput
from ..samplers import SAMPLERS
from .answers import ModelAnswer, Models, Status, answers, describe
from .bodies import Generation, Order, Pictures, problem
from .drawing import Served
from .guard import Guard, answer
from .image_routes import add_image_routes
from .job_routes import add_job_routes
from .limits import Limits
from .metrics import Metrics
from .orders import Orders
from .refusals import Refused, bad_input, broken
from .shared import Server, size_of

PAGE = Path(__file__).with_name("page.html")
BODIES: dict[str, type[Pictures]] = {"/v1/images/generations": Generation, "/v1/jobs": Order}


def make_app(
    served: Sequence[Served],
    limits: Limits | None = None,
    token: str | None = None,
    origins: Sequence[str] = (),
    orders: Orders | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The app. Its end drains the schedulers.

    Args:
        token: what clients must send as a bearer token; None: nothing.
        origins: of other sites whose pages may use this server, as https://example.org.
        orders: where jobs are kept; None: there are no jobs.
        hosts: names and addresses that requests may call this server by; None: any.

    Raises:
        BadInput: two models have one name.
    """
    limits = limits or Limits()
    server = Server(served, limits)

    life = partial(_life, server, orders)
    app = FastAPI(title="cfgdiff", version=own_version(), docs_url=None, redoc_url=None, lifespan=life)
    app.openapi = partial(_once, app)  # type: ignore[method-assign]
    app.state.server, metrics = server, Metrics(server.models)
    _add_errors(app)
    add_image_routes(app, server)
    _add_models(app, server)
    _add_health(app, server, metrics)
    add_job_routes(app, server, orders)
    app.add_middleware(Guard, limits=limits, token=token, metrics=metrics, origins=origins, hosts=hosts)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    return app


@asynccontextmanager
async def _life(server: Server, orders: Orders | None, _: FastAPI) -> AsyncIterator[None]:
    if orders is not None:
        orders.start()
    yield
    server.draining = True
    if orders is not None:
        await anyio.to_thread.run_sync(orders.close)
    for one in server.models.values():
        await anyio.to_thread.run_sync(partial(one.scheduler.close, drain=True))


def _once(app: FastAPI) -> dict[str, Any]:
    """The description of the interface, made at its first use."""
    app.openapi_schema = app.openapi_schema or describe(app)
    return app.openapi_schema


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


def _add_models(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models", responses=answers(Models), response_model=None)
    async def models() -> dict[str, Any]:
        """The models, with what they draw and what they take."""
        return {"object": "list", "data": [described(one.bundle) for one in server.models.values()]}

    @app.get("/v1/models/{name}", responses=answers(ModelAnswer, 404), response_model=None)
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return described(server.model(name).bundle)


def described(bundle: Bundle) -> dict[str, Any]:
    """A model as OpenAI's clients list it, with what requests may say of it."""
    defaults, fitted = bundle.defaults, sorted(bundle.fitted)
    return {
        "id": bundle.name, "object": "model", "created": int((bundle.path / "bundle.json").stat().st_mtime),
        "owned_by": "cfgdiff", "classes": bundle.class_names, "size": size_of(bundle),
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

    @app.get("/healthz", responses=answers(Status), response_model=None)
    async def healthy() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=answers(Status, 503), response_model=None)
    async def ready() -> dict[str, str]:
        """It accepts requests."""
        server.check_open()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses=answers(None, kinds=("text/plain",)))
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
