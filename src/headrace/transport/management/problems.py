"""Errors as RFC 9457 problems: `application/problem+json`.

This module knows nothing of FastAPI, so that whoever answers before it (authentication) can use it
without loading it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.transport.dialect import INTERNAL, Dialect, sentence
from headrace.transport.status import CLIENT_CLOSED, http_status

MEDIA_TYPE: Final = "application/problem+json"
_TYPE: Final = "urn:headrace:error:"


class InvalidFields(InvalidRequest):
    """What was sent does not fit its schema; `details` says where."""

    def __init__(self, message: str, errors: Sequence[Mapping[str, str]]) -> None:
        super().__init__(message)
        self.details = {"errors": list(errors)}


def _body(error: HeadraceError, request_id: str) -> bytes:
    """The members of a problem, with what the error tells beyond its sentence."""
    return msgspec.json.encode(
        {
            "type": _TYPE + error.code,
            "title": error.code.replace("_", " ").capitalize(),
            "status": http_status(error),
            "detail": sentence(error),
            "code": error.code,
            "request_id": request_id,
            **error.details,
        }
    )


PROBLEM: Final = Dialect(MEDIA_TYPE, _body)
problem_response: Final = PROBLEM.asgi_response


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
    return problem_response(INTERNAL, request_id_of(request))
