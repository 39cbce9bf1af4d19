"""Errors as RFC 9457 problems: `application/problem+json`.

This module knows nothing of FastAPI, so that whoever answers before it (authentication) can use it
without loading it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.errors import (
    HeadraceError,
    InvalidRequest,
    Unauthenticated,
)
from headrace.transport.status import CLIENT_CLOSED, http_status

MEDIA_TYPE: Final = "application/problem+json"
_TYPE: Final = "urn:headrace:error:"


class InvalidFields(InvalidRequest):
    """What was sent does not fit its schema; `details` says where."""

    def __init__(self, message: str, errors: Sequence[Mapping[str, str]]) -> None:
        super().__init__(message)
        self.details = {"errors": list(errors)}


def problem_response(error: HeadraceError, request_id: str) -> Response:
    """The whole answer for a typed error, with what it tells beyond its sentence."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(
        http_status(error),
        error.code,
        error.message,
        request_id,
        details=error.details,
        headers=headers,
    )


def problem(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    *,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer of `application/problem+json`."""
    body = {
        "type": _TYPE + code,
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        **(details or {}),
    }
    return Response(
        msgspec.json.encode(body), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def request_id_of(request: Request) -> str:
    """The id that the edge gave the request; "" without an edge."""
    given: str = request.scope.get("headrace.request_id", "")
    return given


async def typed_error(request: Request, error: Exception) -> Response:
    """An exception handler for the platform's own errors."""
    assert isinstance(error, HeadraceError)  # noqa: S101 - registered for it
    return problem_response(error, request_id_of(request))


async def client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this answer; its status is for the log."""
    return Response(status_code=CLIENT_CLOSED)


async def internal_error(request: Request, _: Exception) -> Response:
    """A defect of ours: the client learns no more; who called this logs it with its traceback."""
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "internal error", request_id_of(request)
    )
