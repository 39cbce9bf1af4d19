"""Errors as Open Inference Protocol clients read them: {"error": "<sentence>"}."""

from __future__ import annotations

import math

import msgspec

from headrace.domain.errors import HeadraceError, Unauthenticated
from headrace.transport.http.messages import HttpResponse
from headrace.transport.status import http_status


def error_headers(error: HeadraceError) -> dict[str, str]:
    """Headers that an error adds to its answer."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: HeadraceError, request_id: str) -> HttpResponse:
    """The whole answer for `error`."""
    lines = f"content-type: application/json\r\nx-request-id: {request_id}\r\n"
    for name, value in error_headers(error).items():
        lines += f"{name}: {value}\r\n"
    body = msgspec.json.encode({"error": error.message})
    return HttpResponse(http_status(error), lines.encode(), (body,))
