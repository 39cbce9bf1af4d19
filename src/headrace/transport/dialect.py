"""One error, worded as the clients of a wire read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from starlette.responses import Response

from headrace.domain.errors import HeadraceError
from headrace.transport.error_headers import error_headers, error_lines
from headrace.transport.http.messages import HttpResponse
from headrace.transport.status import http_status

#: What a client is told of a defect of ours.
INTERNAL: Final = HeadraceError("internal error")


class Dialect(msgspec.Struct, frozen=True):
    """How a wire writes the body of an error. Status and headers are the same on every wire."""

    media_type: str
    body: Callable[[HeadraceError, str], bytes]  # of the error and the request's id

    def response(self, error: HeadraceError, request_id: str) -> HttpResponse:
        """The whole answer for `error`, of a protocol-level route."""
        lines = b"content-type: %b\r\n" % self.media_type.encode("ascii")
        return HttpResponse(
            http_status(error),
            lines + error_lines(error, request_id),
            (self.body(error, request_id),),
        )

    def asgi_response(self, error: HeadraceError, request_id: str) -> Response:
        """The whole answer for `error`, of an ASGI application."""
        return Response(
            self.body(error, request_id),
            http_status(error),
            headers=dict(error_headers(error, request_id)),
            media_type=self.media_type,
        )


def sentence(error: HeadraceError) -> str:
    """The error's message as JSON can carry it: what quotes a client may hold half a character."""
    return error.message.encode("utf-8", "backslashreplace").decode()
