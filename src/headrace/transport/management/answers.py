"""Answers, and what the document says of them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from headrace.domain.catalog import ApiKey, Entity, Version
from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    StorageFull,
    StoreUnavailable,
    Unauthenticated,
    UnsupportedMediaType,
)
from headrace.transport.management import preconditions
from headrace.transport.management.fields import Problem
from headrace.transport.management.problems import MEDIA_TYPE
from headrace.transport.status import STATUS

_ETAG: Final = {
    "description": "The state of it: for If-Match and If-None-Match.",
    "required": True,
    "schema": {"type": "string", "pattern": r'^"[0-9a-f]+"$'},
}
_LOCATION: Final = {
    "description": "Where it is from now on.",
    "required": True,
    "schema": {"type": "string", "format": "uri-reference"},
}
#: What every operation may come to.
_ALWAYS: Final = (InvalidRequest, Unauthenticated, Forbidden, RateLimited, StoreUnavailable)
#: What every change that may have an idempotency key may come to besides, and every one of them
#: that has a body.
CHANGE: Final = (StorageFull, IdempotencyInFlight, IdempotencyAnswerLost, IdempotencyMismatch)
WITH_BODY: Final = (*CHANGE, PayloadTooLarge, UnsupportedMediaType)


def view(entity: Entity) -> dict[str, Any]:
    """An entity as it is answered. Whose it is goes without saying: the caller's tenant's."""
    fields: dict[str, Any] = msgspec.to_builtins(entity)
    del fields["tenant"]
    if isinstance(entity, ApiKey):
        del fields["digest"]
    if isinstance(entity, Version) and entity.signature is not None:
        for spec in (*fields["signature"]["inputs"], *fields["signature"]["outputs"]):
            del spec["label_filename"]  # of a model folder, which the registry does not have
    return fields


def json(
    value: Any,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer in JSON."""
    return Response(
        msgspec.json.encode(value),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def entity(
    found: Entity,
    *,
    if_none_match: str | None = None,
    headers: Any = None,
    beside: Mapping[str, Any] | None = None,
) -> Response:
    """An entity with its ETag, or that it is the one that the client has.

    `beside` is what is answered with it and is no part of its state.
    """
    tag = preconditions.etag(found.revision)
    if preconditions.names(if_none_match, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
    return json({**view(found), **(beside or {})}, headers={"ETag": tag, **(headers or {})})


def created(found: Entity, path: str, *, beside: Mapping[str, Any] | None = None) -> Response:
    """A new entity, and where it is; `beside` as in `entity`."""
    headers = {"ETag": preconditions.etag(found.revision), "Location": path}
    return json({**view(found), **(beside or {})}, status=HTTPStatus.CREATED, headers=headers)


def gone() -> Response:
    """It is no longer there."""
    return Response(status_code=HTTPStatus.NO_CONTENT)


def refusals(*errors: type[HeadraceError]) -> dict[int | str, dict[str, Any]]:
    """The document's responses of an operation for the errors that it may raise."""
    titles: dict[int, list[str]] = {}
    every: tuple[type[HeadraceError], ...] = (*_ALWAYS, *errors)
    for error in every:
        said = (error.__doc__ or "").partition(".")[0] + "."
        titles.setdefault(STATUS[error.code][0], []).append(said)
    return {
        status: {
            "description": " ".join(dict.fromkeys(said)),
            "content": {MEDIA_TYPE: {"schema": {"$ref": _PROBLEM}}},
        }
        for status, said in sorted(titles.items())
    }


_PROBLEM: Final = f"#/components/schemas/{Problem.__name__}"

#: Of the document: the headers of answers.
TAGGED: Final[dict[str, Any]] = {"headers": {"ETag": _ETAG}}
PLACED: Final[dict[str, Any]] = {"headers": {"ETag": _ETAG, "Location": _LOCATION}}
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.NOT_MODIFIED.value: {"description": "The client has this state.", **TAGGED}
}
