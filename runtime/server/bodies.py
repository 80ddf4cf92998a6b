"""What requests may say, as they arrive, and the plan that they ask for. It knows no HTTP."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..bundle import Bundle
from ..errors import BadInput, nearest
from ..plan import Plan, resolve
from ..request import Blend, Request
from .limits import Limits
from .prompts import classes_of

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]


class End(BaseModel):
    """What is interpolated to: picture i is `share` (or `share[i]`), 0 .. 1, of the way to this class and seed."""

    model_config = ConfigDict(extra="forbid")
    seed: Seed | list[Seed]
    class_: str | None = Field(None, alias="class", description="None: the class of each picture.")
    share: Number | list[Number] = 0.5


class Pictures(BaseModel):
    """Which pictures: the fields of every request."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="A model of GET /v1/models. Default: the first.")
    prompt: str = Field("", max_length=4000, description='Classes, as in "frog" or "3 frogs, 1 ship".')
    class_: str | list[str] | None = Field(
        None, alias="class", description="Class, or classes that the pictures go round, in place of a prompt."
    )
    n: Count | None = Field(None, description="Number of pictures. Default: 1, or what the prompt counts.")
    size: str | None = Field(None, description="That of the model, as in 32x32.")
    seed: Seed | list[Seed] | None = Field(
        None, description="Picture i depends on (seed, i), or on its own seed in a list. Default: a random one."
    )
    guidance: Number | None = None
    steps: Count | None = None
    sampler: str | None = None
    to: End | None = None


class Generation(Pictures):
    """The body of POST /v1/images/generations. The last fields are those of other models, which change nothing here."""

    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = False
    partial_images: int | None = Field(None, strict=True, ge=0, le=10, description="Previews of each picture.")
    output_format: Literal["png"] | None = None
    output_compression: Literal[100] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None


class Order(Pictures):
    """The body of POST /v1/jobs."""

    format: Literal["tar", "npz"] = "tar"


def plan_of(body: Pictures, bundle: Bundle, most: int) -> Plan:
    """The plan of a request.

    Args:
        most: pictures.

    Raises:
        BadInput: naming the field.
    """
    _, h, w = bundle.image_shape
    if body.size not in (None, "auto", f"{w}x{h}"):
        raise BadInput(f"size: {bundle.name} draws {w}x{h}, found {body.size!r:.40}; leave it out")
    classes = _classes(body, bundle, most)
    seed: Any = secrets.randbelow(2**53) if body.seed is None else body.seed  # a double holds it, as JavaScript's do
    request = Request(classes, body.steps, body.guidance, seed, body.sampler, blend=_blend(body.to, classes))
    return resolve(bundle, request)


def check_rows(plan: Plan, limits: Limits) -> None:
    """Raises `BadInput` for what would take too long in one request."""
    if plan.rows > limits.rows:
        most = f"expected at most {limits.rows} rows of the network in one request, found {plan.rows}"
        raise BadInput(f"steps: {most}; take fewer steps or pictures, or POST /v1/jobs")


def _classes(body: Pictures, bundle: Bundle, most: int) -> list[str]:
    if body.class_ is None:
        return classes_of(body.prompt, body.n, bundle.class_names, most)
    if body.prompt.strip():
        raise BadInput("prompt: expected either a prompt or `class`, found both; leave one out")
    names = [body.class_] if isinstance(body.class_, str) else body.class_
    if not names:
        raise BadInput(f"class: expected a name as in '{bundle.class_names[0]}', found none")
    n = len(names) if body.n is None else body.n
    if n > most:
        raise BadInput(f"n: expected at most {most}, found {n}; POST /v1/jobs takes more")
    return [names[i % len(names)] for i in range(n)]


def _blend(end: End | None, classes: Sequence[str]) -> Blend | None:
    if end is None:
        return None
    shares = end.share if isinstance(end.share, list) else [end.share] * len(classes)
    return Blend(end.seed, classes if end.class_ is None else [end.class_] * len(classes), shares)


def problem(errors: Sequence[Any], body: type[BaseModel]) -> tuple[str, str | None]:
    """What pydantic found, in one line, and the field that it is about."""
    error, fields = errors[0], _names(body)
    where = [part for part in map(str, error["loc"]) if part in fields | _names(End)]  # without kinds, as list[int]
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"{'.'.join([*where, name[:60]])}: no such field{nearest(name, sorted(fields))}", None
    if not where:
        return "expected a JSON object, with content-type application/json", None
    found = "" if error["type"] == "missing" else f", found {error.get('input')!r:.60}"
    return f"{'.'.join(where)}: {error['msg'][:1].lower()}{error['msg'][1:]}{found}", where[0]


def _names(body: type[BaseModel]) -> set[str]:
    return {field.alias or key for key, field in body.model_fields.items()}
