"""Files and batches, as the OpenAPI document tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from headrace.domain.errors import (
    Conflict,
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    StorageFull,
    TenantBusy,
    UnknownModel,
    Unsupported,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from headrace.domain.files import OTHER_PURPOSES
from headrace.domain.scopes import BATCH
from headrace.transport.idempotent import HEADER, PATTERN
from headrace.transport.openai.bodies import NewBatch, NewRetry
from headrace.transport.openai.errors import ErrorBody
from headrace.transport.openai.objects import (
    BatchObject,
    BatchPage,
    FileDeletion,
    FileObject,
    FilePage,
)
from headrace.transport.openai.operation import Operation, header, json_body, query

_operation = partial(Operation, needs=f"Needs the scope `{BATCH}`.")
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


def _id(prefix: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{prefix}[0-9a-z]{{1,64}}$"}
    return {"name": "id", "in": "path", "required": True, "schema": schema}


_FILE: Final = _id("file-")
_BATCH: Final = _id("batch_")
_ONCE: Final = header(
    HEADER, "The same for a request that is sent again, and for no other.", pattern=PATTERN
)
_OPERATORS: Final = "For callers of the tenant `default` with the scope `admin`."
_TENANT: Final = query(
    "tenant",
    f"Whose it is, where it is another tenant's. {_OPERATORS}",
    type="string",
    pattern="^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$",
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

#: By path and method.
OPERATIONS: Final[Mapping[str, Mapping[str, Operation]]] = {
    "/v1/files": {
        "post": _operation(
            id="upload_file",
            says="Upload a file. Sent again it makes another one: `Idempotency-Key` is not read.",
            refusals=(
                RequestTimeout,
                PayloadTooLarge,
                UnsupportedEncoding,
                UnsupportedMediaType,
                StorageFull,
            ),
            body=_UPLOADED,
            answer=FileObject,
            links=("get_file", "read_file", "delete_file"),
        ),
        "get": _operation(
            id="list_files",
            says="List files, the newest first.",
            parameters=(
                query(
                    "purpose",
                    "Only those for it; for OpenAI's other purposes there are none.",
                    enum=["", "batch", "batch_output", *OTHER_PURPOSES],
                ),
                query(
                    "limit",
                    "At most so many.",
                    type="integer",
                    minimum=1,
                    maximum=10_000,
                    default=10_000,
                ),
                query("order", "By their age.", enum=["desc", "asc"], default="desc"),
                query(
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
        "get": _operation(
            id="get_file",
            says="What is known of a file.",
            parameters=(_FILE,),
            refusals=(NotFound,),
            answer=FileObject,
        ),
        "delete": _operation(
            id="delete_file",
            says="Delete a file. One that a batch reads stays until the batch has ended.",
            parameters=(_FILE,),
            refusals=(NotFound, Conflict),
            answer=FileDeletion,
        ),
    },
    "/v1/files/{id}/content": {
        "get": _operation(
            id="read_file",
            says="The bytes of a file.",
            parameters=(
                _FILE,
                query(
                    "presigned",
                    "`true`: answer where anybody may read them for a while, at the object store.",
                    enum=["false", "true"],
                    default="false",
                ),
                header("Range", "One range of bytes; others are not looked at."),
                header("If-Range", "The `ETag` for which the range is wanted."),
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
                    "content": json_body(ErrorBody)["content"],
                },
            },
        ),
    },
    "/v1/batches": {
        "post": _operation(
            id="create_batch",
            says="Begin a batch: run the rows of a file. The caller needs the model's scope too.",
            parameters=(_ONCE,),
            refusals=(UnknownModel, *_BEGUN),
            body=json_body(NewBatch),
            answer=BatchObject,
            links=("get_batch", "cancel_batch", "retry_batch"),
        ),
        "get": _operation(
            id="list_batches",
            says="List batches, the newest first.",
            parameters=(
                query(
                    "limit", "At most so many.", type="integer", minimum=1, maximum=100, default=20
                ),
                query(
                    "after",
                    "`last_id` of the page before.",
                    type="string",
                    pattern="^(batch_[0-9a-z]{1,64})?$",
                ),
                query(
                    "tenant",
                    f"Those of another tenant, or `*` for all. {_OPERATORS}",
                    type="string",
                    pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}|\*)?$",
                ),
            ),
            answer=BatchPage,
        ),
    },
    "/v1/batches/{id}": {
        "get": _operation(
            id="get_batch",
            says="Read a batch.",
            parameters=(_BATCH, _TENANT),
            refusals=(NotFound,),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/cancel": {
        "post": _operation(
            id="cancel_batch",
            says="Run no more rows of a batch. Those that were run keep their answers.",
            parameters=(_BATCH, _TENANT),
            refusals=(NotFound, Conflict),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/retry": {
        "post": _operation(
            id="retry_batch",
            says="Begin a batch of the rows that failed in one that has ended.",
            parameters=(_BATCH, _ONCE),
            refusals=(Conflict, RequestTimeout, *_BEGUN),
            body=json_body(NewRetry, required=False),
            answer=BatchObject,
        ),
    },
    "/v1/batches/{id}/events": {
        "get": _operation(
            id="follow_batch",
            says=(
                "Follow a batch: `progress` at each change that is seen, `done` when it has ended. "
                "Each event's data is the batch, and its id the batch's revision."
            ),
            parameters=(
                _BATCH,
                header(
                    "Last-Event-ID",
                    "The id of the last event that came: go on behind it. What is no id of an "
                    "event is passed over, and all is told.",
                ),
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
