"""What passes between a gRPC server and what it serves; neither knows more of the other."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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


class GrpcStream:
    """One streaming request while it is open: what comes in, and where answers go.

    Neither direction runs ahead: a message is read when it is asked for, and `send` returns when
    the client's flow control has taken the one before. Only one at a time may ask for messages;
    any number may send.

    `under_way` counts the messages that are being answered, between `begin` and `end`. A stream
    without any is cancelled when the server drains, one with some when the last has ended.
    """

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        messages: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
        *,
        timeout_s: float = math.inf,
        peer: str = "",
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.headers = headers  # as in GrpcRequest, and so are the other two
        self.messages = messages  # each whole, decompressed, and within the size limit
        self.send = send
        self.timeout_s = timeout_s
        self.peer = peer
        self.under_way = 0
        self._on_idle = on_idle

    def begin(self) -> None:
        """Count a message that is to be answered."""
        self.under_way += 1

    def end(self) -> None:
        """Count it as answered."""
        self.under_way -= 1
        if not self.under_way:
            self._on_idle()


#: Answers one method. Cancelled when the client cancels, is gone, or waits no longer.
Handler: TypeAlias = Callable[[GrpcRequest], Awaitable[GrpcAnswer]]

#: Answers one streaming method, whose status and trailers it returns. Cancelled as a Handler is.
StreamHandler: TypeAlias = Callable[[GrpcStream], Awaitable[GrpcAnswer]]
