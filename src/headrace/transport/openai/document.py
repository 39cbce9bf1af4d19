"""Files and batches for the OpenAPI document: paths, and the schemas that these refer to.

Schemas are those of the structs that are read and written. What a route says of itself is written
here, and a test holds it against the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.domain.errors import (
    Conflict,
    Forbidden,
    HeadraceError,
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    StorageFull,
    StoreUnavailable,
    TenantBusy,
    Unauthenticated,
    UnknownModel,
    Unsupported,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from headrace.domain.scopes import BATCH
from headrace.transport.idempotent import HEADER, PATTERN
from headrace.transport.openai.bodies import NewBatch, NewRetry
from headrace.transport.openai.errors import OPENAI, ErrorBody
from headrace.transport.openai.objects import (
    BatchObject,
    BatchPage,
    FileDeletion,
    FileObject,
    FilePage,
)
from headrace.transport.status import STATUS

_JSON: Final = "application/json"
_REFERENCE: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (InvalidRequest, Unauthenticated, Forbidden, RateLimited, StoreUnavailable)
#: What a body in JSON, and a key that makes it count once, may be refused for.
_SENT: Final = (
    PayloadTooLarge,
    UnsupportedEncoding,
    UnsupportedMediaType,
    IdempotencyInFlight,
    IdempotencyAnswerLost,
    IdempotencyMismatch,
)
_BEGUN: Final = (NotFound, TenantBusy, StorageFull, *_SENT)
_BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class _Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of a path."""

    id: str
    says: str
    refusals: Sequence[type[HeadraceError]] = ()
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Mapping[str, Any] | None = None
    answer: type[msgspec.Struct] | None = None
    answers: Mapping[str, Any] = {}  # by status, beside `answer`
    links: Sequence[str] = ()  # operations that take the id of what is answered


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    schema = {"type": "string", **schema}
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _id(prefix: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{prefix}[0-9a-z]{{1,64}}$"}
    return {"name": "id", "in": "path", "required": True, "schema": schema}


def _json_body(kind: type[msgspec.Struct], *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(name=kind.__name__)}
    return {"required": required, "content": {_JSON: {"schema": schema}}}


_FILE: Final = _id("file-")
_BATCH: Final = _id("batch_")
_ONCE: Final = _header(
    HEADER, "The same for a request that is sent again, and for no other.", pattern=PATTERN
)
_FORM: Final = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "JSON Lines, sent as a file with its name.",
        },
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": 3600,
            "maximum": 2_592_000,
            "description": "From an hour to 30 days; without it, `batch.file_retention_s`.",
        },
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_UPLOADED: Final = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}

_OPERATIONS: Final[dict[str, dict[str, _Operation]]] = {
    "/v1/files": {
        "post": _Operation(
            id="upload_file",
            says="Upload a file. Sent again it makes another one: `Idempotency-Key` is not read.",
            refusals=(PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType, StorageFull),
            body=_UPLOADED,
            answer=FileObject,
            links=("get_file", "read_file", "delete_file"),
        ),
        "get": _Operation(
            id="list_files",
            says="List files, the newest first.",
            parameters=(
                _query("purpose", "Only those for it.", type="string"),
                _query(
                    "limit",
                    "At most so many.",
                    type="integer",
                    minimum=1,
                    maximum=10_000,
                    default=10_000,
                ),
                _query("order", "By their age.", enum=["desc", "asc"], default="desc"),
                _query(
                    "after",
                    "`last_id` of the page before.",
                    type="string",
                    pattern="^(file-[0-9a-z]{1,64})?$",
                ),
            ),
            answer=FilePage,
        ),
    },
    "/v1/files/{id}": {
        "get": _Operation(
            id="get_file",
            says="What is known of a file.",
            parameters=(_FILE,),
            refusals=(NotFound,),
            answer=FileObject,
        ),
        "delete": _Operation(
            id="delete_file",
            says="Delete a file. One that a batch reads stays until the batch has ended.",
            parameters=(_FILE,),
            refusals=(NotFound, Conflict),
            answer=FileDeletion,
        ),
    },
    "/v1/files/{id}/content": {
        "get": _Operation(
            id="read_file",
            says="The bytes of a file.",
            parameters=(
                _FILE,
                _query(
                    "presigned",
                    "`true`: answer where anybody may read them for a while, at the object store.",
                    enum=["false", "true"],
                    default="false",
                ),
                _header("Range", "One range of bytes; others are not looked at."),
                _header("If-Range", "The `ETag` for which the range is wanted."),
            ),
            refusals=(NotFound, Unsupported),
            answers={
                "200": {"description": "All of it.", "content": _BYTES},
                "206": {"description": "The range.", "content": _BYTES},
                "302": {
                    "description": "Where to read it without a credential.",
                    "headers": {
                        "Location": {
                            "required": True,
                            "schema": {"type": "string", "format": "uri"},
                        }
                    },
                },
                "416": {
                    "description": "The range begins behind the file's end.",
                    "content": _json_body(ErrorBody)["content"],
                },
            },
        ),
    },
    "/v1/batches": {
        "post": _Operation(
            id="create_batch",
            says="Begin a batch: run the rows of a file. The caller needs the model's scope too.",
            parameters=(_ONCE,),
            refusals=(UnknownModel, *_BEGUN),
            body=_json_body(NewBatch),
            answer=BatchObject,
            links=("get_batch", "cancel_batch", "retry_batch"),
        ),
        "get": _Operation(
            id="list_batches",
            says="List batches, the newest first.",
            parameters=(
                _query(
                    "limit", "At most so many.", type="integer", minimum=1, maximum=100, default=20
                ),
                _query(
                    "after",
                    "`last_id` of the page before.",
                    type="string",
                    pattern="^(batch_[0-9a-z]{1,64})?$",
                ),
            ),
            answer=BatchPage,
        ),
    },
    "/v1/batches/{id}": {
        "get": _Operation(
            id="get_batch",
            says="Read a batch.",
            parameters=(_BATCH,),
            refusals=(NotFound,),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/cancel": {
        "post": _Operation(
            id="cancel_batch",
            says="Run no more rows of a batch. Those that were run keep their answers.",
            parameters=(_BATCH,),
            refusals=(NotFound, Conflict),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/retry": {
        "post": _Operation(
            id="retry_batch",
            says="Begin a batch of the rows that failed in one that has ended.",
            parameters=(_BATCH, _ONCE),
            refusals=(Conflict, *_BEGUN),
            body=_json_body(NewRetry, required=False),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/events": {
        "get": _Operation(
            id="follow_batch",
            says=(
                "Follow a batch: `progress` at each change that is seen, `done` when it has ended. "
                "Each event's data is the batch, and its id the batch's revision."
            ),
            parameters=(
                _BATCH,
                _header("Last-Event-ID", "The id of the last event that came: go on behind it."),
            ),
            refusals=(NotFound, Overloaded),
            answers={
                "200": {
                    "description": "Server-sent events.",
                    "content": {"text/event-stream": {"schema": {"type": "string"}}},
                }
            },
        ),
    },
}


def document() -> dict[str, Any]:
    """`paths` and `components` of an OpenAPI document, to be put to others."""
    kinds: list[type[msgspec.Struct]] = [ErrorBody, NewBatch, NewRetry]
    paths: dict[str, Any] = {}
    for path, methods in _OPERATIONS.items():
        paths[path] = {method: _described(path, each) for method, each in methods.items()}
        kinds += [each.answer for each in methods.values() if each.answer is not None]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    return {"paths": paths, "components": {"schemas": schemas}}


def _described(path: str, operation: _Operation) -> dict[str, Any]:
    answers = dict(operation.answers)
    if operation.answer is not None:
        answers["200"] = {
            "description": "Done.",
            "content": _json_body(operation.answer)["content"],
        }
        if operation.links:
            answers["200"]["links"] = {
                name: {"operationId": name, "parameters": {"path.id": "$response.body#/id"}}
                for name in operation.links
            }
    described: dict[str, Any] = {
        "tags": [path.split("/")[2]],
        "summary": operation.says.partition(".")[0].partition(":")[0],
        "description": f"{operation.says}\n\nNeeds the scope `{BATCH}`.",
        "operationId": operation.id,
        "parameters": [*operation.parameters],
        "responses": dict(sorted({**_refused(operation), **answers}.items())),
    }
    if operation.body is not None:
        described["requestBody"] = operation.body
    return described


def _refused(operation: _Operation) -> dict[str, Any]:
    """By status, what its errors are."""
    said: dict[str, list[str]] = {}
    errors: tuple[type[HeadraceError], ...] = (*_ALWAYS, *operation.refusals)
    for error in errors:
        sentence = (error.__doc__ or "").partition(".")[0] + "."
        said.setdefault(str(STATUS[error.code][0]), []).append(sentence)
    content = {OPENAI.media_type: _json_body(ErrorBody)["content"][_JSON]}
    return {
        status: {"description": " ".join(dict.fromkeys(sentences)), "content": content}
        for status, sentences in said.items()
    }
