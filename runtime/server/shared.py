"""What the routes share: the models and the limits."""

from collections.abc import Sequence

import anyio

from ..bundle import Model
from ..errors import BadInput, named
from .drawing import Kept, Served
from .limits import Limits
from .refusals import Refused, closing

ENCODERS = 2  # more would only take the interpreter from the schedulers


class Server:
    """What the routes share.

    Attributes:
        models: the models by name; the first is the default.
        draining: no request is accepted any more.
        threads, encoders: how many wait for the pictures of streams, and make files of those of other requests.
    """

    def __init__(self, served: Sequence[Served], limits: Limits) -> None:
        self.models: dict[str, Served] = {}
        for one in served:
            if one.bundle.name in self.models:
                raise BadInput(f"model: expected models of different names, found {one.bundle.name} twice")
            self.models[one.bundle.name] = one
        self.limits, self.kept, self.draining = limits, Kept(limits), False
        self.threads = anyio.CapacityLimiter(limits.waiting)
        self.encoders = anyio.CapacityLimiter(ENCODERS)

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
