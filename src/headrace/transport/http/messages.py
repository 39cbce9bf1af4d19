"""Requests and responses of the protocol-level routes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class HttpRequest(msgspec.Struct, gc=False):
    """A whole request. Header names are lower case; repeated headers are joined by ", "."""

    method: str
    target: bytes  # as received: still escaped, with its query
    headers: dict[bytes, bytes]
    body: bytes = b""


class HttpResponse(msgspec.Struct, gc=False):
    """A whole response.

    `headers` are ready lines, each ended by CR LF, without Content-Length, Date and Connection.
    """

    status: int
    headers: bytes
    body: Sequence[bytes | memoryview] = ()
    close: bool = False  # the connection cannot be used after this answer


Handler: TypeAlias = Callable[[HttpRequest], Coroutine[Any, Any, HttpResponse]]


def json_error(status: int, message: str, *, close: bool = False) -> HttpResponse:
    """An error in the form that Open Inference Protocol clients read: {"error": message}."""
    body = msgspec.json.encode({"error": message})
    return HttpResponse(status, b"content-type: application/json\r\n", (body,), close)
