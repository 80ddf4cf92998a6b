"""Errors as OpenAI's clients read them. It knows no requests.

No text of an error that may hold a path of this machine leaves the server: it goes to the log.
"""

import logging
import math
from typing import Any

from ..errors import BadInput
from .scheduler import Failed

log = logging.getLogger("cfgdiff.server")
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
# The fields of requests for the library's parameters that have another name.
FIELDS = {"classes": "class", "blend": "to", "blend.seed": "to.seed", "blend.shares": "to.share"}


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        parameter: of the request, which the error is about.
        code: a word for programs.
        retry_after: seconds.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None,
                 retry_after: float | None = None) -> None:  # fmt: skip
        super().__init__(" ".join(message.encode("utf-8", "replace").decode().split()))  # it may quote the client
        self.status, self.parameter, self.code, self.retry_after = status, parameter, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Beside those of every answer."""
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after is None else headers | {"retry-after": str(math.ceil(self.retry_after))}


def bad_input(error: BadInput) -> Refused:
    """The answer to a parameter that makes no sense: the error names it before its colon."""
    name, colon, rest = str(error).partition(": ")
    if not colon or not name.replace(".", "").replace("_", "").isalpha():
        return Refused(400, str(error), code="invalid_value")
    name = FIELDS.get(name, name)
    return Refused(400, f"{name}: {rest}", name, "invalid_value")


def broken(error: object) -> Refused:
    """The answer where drawing failed. The error itself goes to the log."""
    log.error("drawing failed: %s", error)
    return Refused(500, "the picture could not be drawn; the server's log says why", code="engine_failed")


def late() -> Refused:
    """The answer where time is over."""
    return Refused(504, "the pictures were not drawn in time; ask for fewer, or POST /v1/jobs", code="timeout")


def failed(event: Failed) -> Refused:
    """The answer where a job failed."""
    return {"deadline": late, "closed": closing}.get(event.reason, lambda: broken(event.error))()


def cancelled() -> Refused:
    """The answer to a client that hung up, which nobody reads."""
    return Refused(499, "the client hung up", code="cancelled")


def full(retry_after: float) -> Refused:
    """The answer where the queue is full."""
    return Refused(429, "the queue is full; ask again later", code="rate_limit_exceeded", retry_after=retry_after)


def closing() -> Refused:
    """The answer of a server that is about to end."""
    return Refused(503, "the server is shutting down; ask again later", code="shutting_down", retry_after=5)
