"""The one table between error codes and the statuses of each wire."""

from __future__ import annotations

import enum
from typing import Final

from headrace.domain.errors import HeadraceError

CLIENT_CLOSED: Final = 499  # never sent: the client is gone; for logs and metrics


class GrpcStatus(enum.IntEnum):
    """The statuses of gRPC that the platform answers with."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class OpenAiType(enum.StrEnum):
    """What OpenAI's clients sort errors by."""

    INVALID = "invalid_request_error"
    AUTHENTICATION = "authentication_error"
    PERMISSION = "permission_error"
    NOT_FOUND = "not_found_error"
    RATE_LIMIT = "rate_limit_error"
    SERVER = "server_error"


_G = GrpcStatus
_O = OpenAiType
#: By error code: the status of HTTP, that of gRPC, and the type that OpenAI's clients read.
STATUS: Final[dict[str, tuple[int, GrpcStatus, OpenAiType]]] = {
    "invalid_request": (400, _G.INVALID_ARGUMENT, _O.INVALID),
    "malformed_http": (400, _G.INVALID_ARGUMENT, _O.INVALID),
    "unauthenticated": (401, _G.UNAUTHENTICATED, _O.AUTHENTICATION),
    "forbidden": (403, _G.PERMISSION_DENIED, _O.PERMISSION),
    "method_not_allowed": (405, _G.UNIMPLEMENTED, _O.INVALID),
    "request_timeout": (408, _G.DEADLINE_EXCEEDED, _O.INVALID),
    "idempotency_in_flight": (409, _G.ABORTED, _O.INVALID),
    "idempotency_answer_lost": (409, _G.ABORTED, _O.INVALID),
    "idempotency_mismatch": (422, _G.INVALID_ARGUMENT, _O.INVALID),
    "rate_limited": (429, _G.RESOURCE_EXHAUSTED, _O.RATE_LIMIT),
    "tenant_busy": (429, _G.RESOURCE_EXHAUSTED, _O.RATE_LIMIT),
    "head_too_large": (431, _G.RESOURCE_EXHAUSTED, _O.INVALID),
    "overloaded": (503, _G.UNAVAILABLE, _O.SERVER),
    "too_many_connections": (503, _G.UNAVAILABLE, _O.SERVER),
    "keys_unavailable": (503, _G.UNAVAILABLE, _O.SERVER),
    "payload_too_large": (413, _G.RESOURCE_EXHAUSTED, _O.INVALID),
    "unsupported_encoding": (415, _G.UNIMPLEMENTED, _O.INVALID),
    "unsupported_media_type": (415, _G.UNIMPLEMENTED, _O.INVALID),
    "unsupported": (501, _G.UNIMPLEMENTED, _O.INVALID),
    "model_not_found": (404, _G.NOT_FOUND, _O.NOT_FOUND),
    "model_not_ready": (503, _G.UNAVAILABLE, _O.SERVER),
    "no_ready_endpoint": (503, _G.UNAVAILABLE, _O.SERVER),
    "endpoint_busy": (503, _G.UNAVAILABLE, _O.SERVER),
    "endpoint_failed": (502, _G.UNAVAILABLE, _O.SERVER),
    "endpoint_timeout": (504, _G.DEADLINE_EXCEEDED, _O.SERVER),
    # what the client names is legal; what lies in the repository is not
    "model_load_failed": (400, _G.FAILED_PRECONDITION, _O.INVALID),
    "model_failed": (500, _G.INTERNAL, _O.SERVER),
    "invalid_response": (502, _G.UNAVAILABLE, _O.SERVER),
    "queue_full": (503, _G.UNAVAILABLE, _O.SERVER),
    "queue_timeout": (503, _G.UNAVAILABLE, _O.SERVER),
    "deadline_exceeded": (504, _G.DEADLINE_EXCEEDED, _O.SERVER),
    "shutting_down": (503, _G.UNAVAILABLE, _O.SERVER),
    "not_found": (404, _G.NOT_FOUND, _O.NOT_FOUND),
    "already_exists": (409, _G.ALREADY_EXISTS, _O.INVALID),
    "conflict": (409, _G.FAILED_PRECONDITION, _O.INVALID),
    "precondition_required": (428, _G.FAILED_PRECONDITION, _O.INVALID),
    "precondition_failed": (412, _G.ABORTED, _O.INVALID),
    "store_unavailable": (503, _G.UNAVAILABLE, _O.SERVER),
    "storage_full": (507, _G.RESOURCE_EXHAUSTED, _O.SERVER),
    "cache_unavailable": (503, _G.UNAVAILABLE, _O.SERVER),
    "changes_forgotten": (503, _G.UNAVAILABLE, _O.SERVER),
    "batch_cancelled": (409, _G.ABORTED, _O.INVALID),
    "batch_expired": (504, _G.DEADLINE_EXCEEDED, _O.SERVER),
    "chunk_dead": (500, _G.INTERNAL, _O.SERVER),
    "batch_inconsistent": (500, _G.INTERNAL, _O.SERVER),
    "invalid_settings": (500, _G.INTERNAL, _O.SERVER),
    "internal": (500, _G.INTERNAL, _O.SERVER),
}


def http_status(error: HeadraceError) -> int:
    """The HTTP status that tells a client of `error`."""
    return STATUS[error.code][0]


def grpc_status(error: HeadraceError) -> GrpcStatus:
    """The gRPC status that tells a client of `error`."""
    return STATUS[error.code][1]


def openai_type(error: HeadraceError) -> OpenAiType:
    """The type that tells a client of OpenAI's API of `error`."""
    return STATUS[error.code][2]
