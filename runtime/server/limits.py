"""How much one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is refused, or ended, with an error that names the limit.

    Attributes:
        pictures: of one request.
        order: pictures of one job.
        orders: jobs that are kept, finished ones among them.
        rows: of the network in one request.
        seconds: from a request's body to its last picture.
        body: bytes of a request.
        body_seconds: in which a request must be sent.
        waiting: streams that wait for pictures at once; each holds a thread.
        kept_bytes, kept_seconds: of the pictures behind URLs.
    """

    pictures: int = 256
    order: int = 1_000_000
    orders: int = 1000
    rows: int = 65_536
    seconds: float = 120.0
    body: int = 64 * 1024
    body_seconds: float = 10.0
    waiting: int = 1024
    kept_bytes: int = 64 * 1024 * 1024
    kept_seconds: float = 3600.0
