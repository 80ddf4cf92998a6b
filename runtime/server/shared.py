"""What the routes share: the models, the limits, and the errors as the description of the interface lists them."""

from collections.abc import Sequence
from typing import Any

import anyio

from ..bundle import Model
from ..errors import BadInput, named
from .drawing import Kept, Served
from .limits import Limits
from .refusals import Refused, closing

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


def size_of(bundle: Model) -> str:
    """As requests say it: width and height."""
    _, h, w = bundle.image_shape
    return f"{w}x{h}"
