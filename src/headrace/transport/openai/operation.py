"""One method of a path, as the OpenAPI document tells of it.

Schemas are those of the structs that are read and written. What a route says of itself is written
in tables beside this file, and tests hold them against the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from headrace.transport.openai.errors import OPENAI, ErrorBody
from headrace.transport.status import STATUS

JSON: Final = "application/json"
REFERENCE: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (InvalidRequest, Unauthenticated, Forbidden, RateLimited, StoreUnavailable)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of a path."""

    id: str
    says: str
    needs: str  # a sentence: which scopes
    tag: str = ""  # what it is shown among; "": the path's first name
    refusals: Sequence[type[HeadraceError]] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Mapping[str, Any] | None = None
    answer: type[msgspec.Struct] | None = None
    answers: Mapping[str, Any] = {}  # by status, beside `answer`
    links: Sequence[str] = ()  # operations that take the id of what is answered


def query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


def header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A header of the request."""
    schema = {"type": "string", **schema}
    return {"name": name, "in": "header", "description": description, "schema": schema}


def json_body(kind: type[msgspec.Struct], *, required: bool = True) -> dict[str, Any]:
    """A body in JSON."""
    schema = {"$ref": REFERENCE.format(name=kind.__name__)}
    return {"required": required, "content": {JSON: {"schema": schema}}}


def described(path: str, operation: Operation) -> dict[str, Any]:
    """What the document says of an operation."""
    answers = dict(operation.answers)
    if operation.answer is not None:
        answers["200"] = {
            "description": "Done.",
            "content": json_body(operation.answer)["content"],
        }
        if operation.links:
            answers["200"]["links"] = {
                name: {"operationId": name, "parameters": {"path.id": "$response.body#/id"}}
                for name in operation.links
            }
    told: dict[str, Any] = {
        "tags": [operation.tag or path.split("/")[2]],
        "summary": operation.says.partition(".")[0].partition(":")[0],
        "description": f"{operation.says}\n\n{operation.needs}",
        "operationId": operation.id,
        "parameters": [*operation.parameters],
        "responses": dict(sorted({**_refused(operation), **answers}.items())),
    }
    if operation.body is not None:
        told["requestBody"] = operation.body
    return told


def _refused(operation: Operation) -> dict[str, Any]:
    """By status, what its errors are."""
    said: dict[str, list[str]] = {}
    errors: tuple[type[HeadraceError], ...] = (*_ALWAYS, *operation.refusals)
    for error in errors:
        sentence = (error.__doc__ or "").partition(".")[0] + "."
        said.setdefault(str(STATUS[error.code][0]), []).append(sentence)
    content = {OPENAI.media_type: json_body(ErrorBody)["content"][JSON]}
    return {
        status: {"description": " ".join(dict.fromkeys(sentences)), "content": content}
        for status, sentences in said.items()
    }
