"""What every request passes first: the bearer token, the limits on its body, and the count of answers."""

import hmac
import time
from collections.abc import Iterable

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .metrics import Metrics
from .refusals import Refused, cancelled

OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}  # without a token; and pictures, whose URLs are secret
OPEN_BELOW = "/images/"


def answer(refused: Refused) -> Response:
    """The response of a refusal."""
    return JSONResponse(refused.body, refused.status, refused.headers)


def new_token(text: str) -> str | None:
    """The token in a file's text, or None where it is no token: one word of printable ASCII."""
    word = text.strip()
    return word if word.isascii() and word.isprintable() and word and " " not in word else None


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
            _check_json(scope, body)
        except Refused as refused:
            await answer(refused)(scope, receive, counted)
        else:
            await self._app(scope, _again(body, receive), counted)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - started)

    def _check_token(self, scope: Scope) -> None:
        path = scope["path"]
        if self._token is None or path in OPEN or path.startswith(OPEN_BELOW):
            return
        kind, _, word = Headers(scope=scope).get("authorization", "").partition(" ")
        same = hmac.compare_digest(word.strip().encode("utf-8", "replace"), self._token)  # in constant time
        if kind.lower() != "bearer" or not same:
            raise Refused(401, "expected the header Authorization: Bearer TOKEN of this server", code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of the body, so that a slow client holds nothing but its connection."""
        most, body = self._limits.body, bytearray()
        too_large = Refused(413, f"expected a body of at most {most} bytes", code="body_too_large")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        with anyio.move_on_after(self._limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise cancelled()
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
        within = f"expected the body within {self._limits.body_seconds:g} s"
        raise Refused(408, within, code="timeout")


def _check_json(scope: Scope, body: bytes) -> None:
    """Without this, any site's page could send a body here without the browser asking first; see CORS."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != "application/json":
        raise Refused(415, f"expected content-type application/json, found {kind[:40] or 'none'}")


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` from the start, with a body that was read."""
    messages: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Message:
        for message in messages:
            return message
        return await receive()

    return received
