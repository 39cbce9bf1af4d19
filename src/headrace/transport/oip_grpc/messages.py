"""What passes between a gRPC server and what it serves; neither knows more of the other."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec

from headrace.transport.status import GrpcStatus


class GrpcRequest(msgspec.Struct, frozen=True, gc=False):
    """One unary request: its message is whole, decompressed, and within the size limit."""

    headers: Mapping[bytes, bytes]  # names are lower case; values of equal names joined by ", "
    message: bytes
    timeout_s: float = math.inf  # that the client's deadline leaves
    peer: str = ""  # the IP address of whoever has connected; "" by a Unix socket


class GrpcAnswer(msgspec.Struct, frozen=True, gc=False):
    """A message, or the status that stands in its place; trailers go with either."""

    message: bytes = b""
    status: GrpcStatus = GrpcStatus.OK
    details: str = ""  # the sentence of an error
    trailers: tuple[tuple[str, str], ...] = ()


#: Answers one method. Cancelled when the client cancels, is gone, or waits no longer.
Handler: TypeAlias = Callable[[GrpcRequest], Awaitable[GrpcAnswer]]
