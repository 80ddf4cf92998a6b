"""What answers look like, for the description of the interface: /openapi.json. It knows no requests."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

TEXTS = {
    400: "A field makes no sense.", 401: "The token is missing or wrong.",
    403: "The server is not known by this name, or a page of another site asks.", 404: "There is none of that name.",
    408: "The body came too slowly.", 409: "The job is not done.", 413: "The body is too large.",
    415: "The body is not JSON.", 429: "The queue is full; see Retry-After.", 500: "The engine fails.",
    503: "The server is shutting down.", 504: "The pictures were not drawn in time.",
}  # fmt: skip
EVENT = {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON."}}
SCHEMAS: dict[str, Any] = {"text/event-stream": {"type": "object", "properties": EVENT, "required": ["data"]}}
OF_BODIES = (400, 408, 413, 415)  # of the requests that have one
ALWAYS = (401, 403)


class Problem(BaseModel):
    """What is wrong: in one line, with the field, if one is, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error as OpenAI's clients read it."""

    error: Problem


class Image(BaseModel):
    """A picture: its PNG in base64, or where it is; and how it was made."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    note: dict[str, Any]


class Images(BaseModel):
    """The answer to a generation."""

    created: int
    size: str
    output_format: Literal["png"]
    data: list[Image]


class Choices(BaseModel):
    """What requests may say: the numbers of steps, if only a few fit; the least and the most guidance, if limited."""

    steps: list[int] | None
    guidance: list[float] | None
    sampler: list[str]


class ModelAnswer(BaseModel):
    """A model, with its defaults."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    classes: list[str]
    size: str
    steps: int
    guidance: float
    choices: Choices


class Models(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class JobAnswer(BaseModel):
    """A job, with `done` of its `n` pictures drawn."""

    id: str
    object: Literal["job"]
    created_at: int
    status: Literal["queued", "running", "done", "failed"]
    n: int
    done: int
    format: Literal["tar", "npz"]
    model: str
    seed: int | list[int]
    error: str | None


class Jobs(BaseModel):
    """All jobs."""

    object: Literal["list"]
    data: list[JobAnswer]


class Deleted(BaseModel):
    """A job that is no more."""

    id: str
    object: Literal["job"]
    deleted: Literal[True]


class Status(BaseModel):
    """Of the server."""

    status: str


def answers(
    model: type[BaseModel] | None, *errors: int, status: int = 200, kinds: tuple[str, ...] = ()
) -> dict[int | str, dict[str, Any]]:
    """A route's answers.

    Args:
        model: of the JSON; None: there is none.
        errors: their statuses, beside those that every route may answer with.
        kinds: other media types.
    """
    right: dict[str, Any] = {} if model is None else {"model": model}
    if kinds:
        right["content"] = {kind: {"schema": SCHEMAS.get(kind, {"type": "string"})} for kind in kinds}
    return {status: right, **{error: {"description": TEXTS[error]} for error in errors}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of the interface, in which all errors have the form of `Error`, and none is FastAPI's own."""
    tree = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = tree["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    error = Error.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= error.pop("$defs") | {"Error": error}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path in tree["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status in (*ALWAYS, *(OF_BODIES if "requestBody" in operation else ())):
                responses.setdefault(str(status), {"description": TEXTS[status]})
            for status, response in responses.items():
                if int(status) >= 400:
                    response["content"] = content
    return tree
