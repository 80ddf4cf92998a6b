"""What every request passes first: checks of host, origin and token, limits on its body, and the count of answers."""

import hmac
import re
import time
from collections.abc import Collection, Iterable

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .metrics import Metrics
from .refusals import Refused, cancelled

OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}  # without a token; and pictures, whose URLs are secret
OPEN_BELOW = "/images/"
PROBES = {"/healthz", "/readyz"}  # under any name: whoever asks may know an address alone
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(?::\d*)?")
READING = {"GET", "HEAD", "OPTIONS"}  # other sites' pages may send these, and cannot read the answer


def answer(refused: Refused) -> Response:
    """The response of a refusal."""
    return JSONResponse(refused.body, refused.status, refused.headers)


def new_token(text: str) -> str | None:
    """The token in a file's text, or None where it is no token: one word of printable ASCII."""
    word = text.strip()
    return word if word.isascii() and word.isprintable() and word and " " not in word else None


def host_name(header: str) -> str:
    """The name or address in a header Host, in lower case, without its port; IPv6 addresses in brackets."""
    match = HOST.fullmatch(header.strip().lower())
    return match[1] if match else ""


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, limits: Limits, token: str | None, metrics: Metrics, origins: Collection[str],
        hosts: Collection[str] | None,
    ) -> None:  # fmt: skip
        self._app, self._limits, self._metrics, self._origins = app, limits, metrics, origins
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
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
            self._check_host(scope)
            self._check_origin(scope)
            self._check_token(scope)
            body = await self._body(scope, receive)
            _check_json(scope, body)
        except Refused as refused:
            await answer(refused)(scope, receive, counted)
        else:
            await self._app(scope, _again(body, receive), counted)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - started)

    def _check_host(self, scope: Scope) -> None:
        """A page whose name leads to this machine by a trick of its DNS says that name as host."""
        name = host_name(Headers(scope=scope).get("host", ""))
        if self._hosts is not None and scope["path"] not in PROBES and name not in self._hosts:
            known = "expected a name of this server in the header Host; cfgdiff serve --allow-host adds others"
            raise Refused(403, f"{known}, found {name[:60]!r}", code="unknown_host")

    def _check_origin(self, scope: Scope) -> None:
        """Another site's page may not ask for anything, though it could not read the answer. Programs say no origin."""
        headers = Headers(scope=scope)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if scope["method"] in READING or origin in self._origins or (origin is None and site is None):
            return
        # Browsers say themselves whether it is another site; old ones say the origin alone.
        own = site in ("same-origin", "none") if site else (origin or "").partition("://")[2] == headers.get("host")
        if not own:
            raise Refused(403, "pages of other sites may not use this server", code="other_site")

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
