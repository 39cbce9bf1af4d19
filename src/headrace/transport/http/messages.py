"""Requests and responses of the protocol-level routes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class HttpRequest(msgspec.Struct, gc=False):
    """A whole request. Header names are lower case; repeated headers are joined by ", "."""

    method: str
    target: bytes  # as received: still escaped, with its query
    headers: dict[bytes, bytes]
    body: bytes | list[bytes | memoryview] = b""  # a large one in the parts that came
    peer: str = ""  # the address that it came from; "" where the socket has none


class HttpResponse(msgspec.Struct, gc=False):
    """A whole response.

    `headers` are ready lines, each ended by CR LF, without Content-Length, Date and Connection.
    """

    status: int
    headers: bytes
    body: Sequence[bytes | memoryview] = ()
    close: bool = False  # the connection cannot be used after this answer


Handler: TypeAlias = Callable[[HttpRequest], Coroutine[Any, Any, HttpResponse]]


def origin_form(target: bytes) -> bytes:
    """A request target without scheme and host, which one that is sent to a proxy begins with."""
    if not target.startswith(b"/") and b"://" in target:
        return b"/" + target.partition(b"://")[2].partition(b"/")[2]
    return target


def path_of(target: bytes) -> str:
    """The path of a request target, unescaped."""
    path = origin_form(target).partition(b"?")[0]
    return unquote_to_bytes(path).decode("utf-8", "replace")
