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
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


_G = GrpcStatus
#: By error code: the status of HTTP, and that of gRPC.
STATUS: Final[dict[str, tuple[int, GrpcStatus]]] = {
    "invalid_request": (400, _G.INVALID_ARGUMENT),
    "unauthenticated": (401, _G.UNAUTHENTICATED),
    "payload_too_large": (413, _G.RESOURCE_EXHAUSTED),
    "unsupported_encoding": (415, _G.UNIMPLEMENTED),
    "unsupported_media_type": (415, _G.UNIMPLEMENTED),
    "unsupported": (501, _G.UNIMPLEMENTED),
    "model_not_found": (404, _G.NOT_FOUND),
    "model_not_ready": (503, _G.UNAVAILABLE),
    # what the client names is legal; what lies in the repository is not
    "model_load_failed": (400, _G.FAILED_PRECONDITION),
    "model_failed": (500, _G.INTERNAL),
    "queue_full": (503, _G.UNAVAILABLE),
    "queue_timeout": (503, _G.UNAVAILABLE),
    "deadline_exceeded": (504, _G.DEADLINE_EXCEEDED),
    "shutting_down": (503, _G.UNAVAILABLE),
    "not_found": (404, _G.NOT_FOUND),
    "already_exists": (409, _G.ALREADY_EXISTS),
    "conflict": (409, _G.FAILED_PRECONDITION),
    "precondition_required": (428, _G.FAILED_PRECONDITION),
    "precondition_failed": (412, _G.ABORTED),
    "store_unavailable": (503, _G.UNAVAILABLE),
    "storage_full": (507, _G.RESOURCE_EXHAUSTED),
    "cache_unavailable": (503, _G.UNAVAILABLE),
    "changes_forgotten": (503, _G.UNAVAILABLE),
    "invalid_settings": (500, _G.INTERNAL),
    "internal": (500, _G.INTERNAL),
}


def http_status(error: HeadraceError) -> int:
    """The HTTP status that tells a client of `error`."""
    return STATUS[error.code][0]


def grpc_status(error: HeadraceError) -> GrpcStatus:
    """The gRPC status that tells a client of `error`."""
    return STATUS[error.code][1]
