"""The one table between error codes and the statuses of each wire."""

from __future__ import annotations

from typing import Final

from headrace.domain.errors import HeadraceError

CLIENT_CLOSED: Final = 499  # never sent: the client is gone; for logs and metrics

HTTP_STATUS: Final[dict[str, int]] = {
    "invalid_request": 400,
    "unauthenticated": 401,
    "payload_too_large": 413,
    "unsupported_encoding": 415,
    "unsupported": 501,
    "model_not_found": 404,
    "model_not_ready": 503,
    "model_load_failed": 400,
    "model_failed": 500,
    "queue_full": 503,
    "queue_timeout": 503,
    "deadline_exceeded": 504,
    "shutting_down": 503,
    "invalid_settings": 500,
    "internal": 500,
}


def http_status(error: HeadraceError) -> int:
    """The HTTP status that tells a client of `error`."""
    return HTTP_STATUS[error.code]
