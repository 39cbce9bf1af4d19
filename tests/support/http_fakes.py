"""A connection of the HTTP server without a socket: what a test says is what it reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.domain.errors import HeadraceError
from headrace.transport.http.connection import Connection
from headrace.transport.http.host import AsgiApp, AsgiMessage, Host
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.messages import Handler, HttpRequest, HttpResponse
from headrace.transport.status import http_status

LIMITS = HttpLimits(
    max_body_bytes=1000,
    max_head_bytes=2000,
    max_connections=3,
    head_timeout_s=10,
    body_timeout_s=30,
    idle_timeout_s=75,
    write_timeout_s=60,
)
HOT = "/hot"


class FakeTransport(asyncio.Transport):
    """Keeps what is written. `stall` makes it a client that takes nothing."""

    def __init__(self, peername: object = ("192.0.2.7", 50000)) -> None:
        super().__init__({"peername": peername, "sockname": ("192.0.2.1", 8080)})
        self.protocol: Connection | None = None
        self.written = b""
        self.unsent = 0
        self.stalled = False
        self.reading = True
        self.eof = False
        self.closing = False
        self.aborted = False

    def stall(self) -> None:
        self.stalled = True

    def take(self, size: int | None = None) -> None:
        """The client takes `size` bytes, or all, and goes on to do so in the latter case."""
        if size is not None:
            self.unsent -= size
            return
        self.stalled = False
        self.unsent = 0
        assert self.protocol is not None
        self.protocol.resume_writing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof, "write after write_eof"
        assert not self.closing, "write after close"
        self.written += data
        if self.stalled:
            first = not self.unsent
            self.unsent += len(data)
            if first:
                assert self.protocol is not None
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


class FakeApplication:
    """`/hot` goes to `answer`, everything else to `asgi`. Errors are told in plain text."""

    def __init__(self, answer: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        self.answer = answer
        self.requests: list[HttpRequest] = []
        self.refused: list[tuple[bytes, Mapping[bytes, bytes], HeadraceError]] = []
        self.asgi: AsgiApp = _nothing
        self.unwelcome: HeadraceError | None = None  # what whoever sends a large body is told
        self.asked: list[tuple[Mapping[bytes, bytes], str]] = []

    def is_upload(self, method: str, target: bytes) -> bool:
        return method == "PUT" and target == b"/upload"

    def handler(self, method: str, target: bytes) -> Handler | None:
        del method
        return self._handle if target.startswith(HOT.encode()) else None

    def may_send(self, headers: Mapping[bytes, bytes], peer: str) -> HeadraceError | None:
        self.asked.append((dict(headers), peer))
        return self.unwelcome

    def refuse(
        self, target: bytes, headers: Mapping[bytes, bytes], error: HeadraceError
    ) -> HttpResponse:
        self.refused.append((target, dict(headers), error))
        return HttpResponse(http_status(error), b"", (error.message.encode(),))

    def failed(
        self, target: bytes, headers: Mapping[bytes, bytes], error: BaseException
    ) -> HttpResponse:
        logging.getLogger(__name__).error("failed", exc_info=error)
        return self.refuse(target, headers, HeadraceError("internal error"))

    async def _handle(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        return await self.answer(request)


class Wire:
    """One connection and all that surrounds it; time goes on only by `wait`."""

    def __init__(
        self,
        application: FakeApplication,
        *,
        loop: asyncio.AbstractEventLoop,
        tasks: asyncio.TaskGroup,
        limits: HttpLimits = LIMITS,
    ) -> None:
        self.application = application
        self.trims = 0
        self.host = Host(
            application=application,
            limits=limits,
            loop=loop,
            tasks=tasks,
            give_memory_back=self._trim,
        )
        self.transport, self.connection = self.connect()

    def connect(self) -> tuple[FakeTransport, Connection]:
        """One more client."""
        transport = FakeTransport()
        connection = Connection(self.host)
        transport.protocol = connection
        connection.connection_made(transport)
        return transport, connection

    def send(self, *parts: bytes) -> None:
        """What the client sends, read by read, as long as the server reads at all."""
        for part in parts:
            self.connection.data_received(part)

    def wait(self, seconds: float) -> None:
        """Time passes; whoever is late by then is told so."""
        self.host.now += seconds
        for connection in list(self.host.connections):
            if connection.deadline < self.host.now:
                connection.expire()
        self.host.tidy()

    def hang_up(self) -> None:
        self.connection.connection_lost(None)

    def _trim(self) -> None:
        self.trims += 1

    @property
    def statuses(self) -> list[int]:
        """The status of every answer so far, in order."""
        pieces = self.transport.written.split(b"HTTP/1.1 ")[1:]
        return [int(piece[:3]) for piece in pieces]

    @property
    def last(self) -> bytes:
        """The last answer so far."""
        return b"HTTP/1.1 " + self.transport.written.rpartition(b"HTTP/1.1 ")[2]

    @property
    def ended(self) -> bool:
        """Whether the server has ended the connection, by its side at least."""
        return self.transport.eof or self.transport.closing


async def _nothing(scope: AsgiMessage, receive: Any, send: Any) -> None:
    del scope, receive, send
    raise AssertionError("nothing is sent to this application")


async def settle() -> None:
    """Let everything happen that can happen without anything from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


def get(target: str, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"GET {target} HTTP/{version}", *headers]
    if version == "1.1":
        lines.append("Host: a")
    return "\r\n".join([*lines, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: a", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(target: str, *pieces: bytes, trailers: bytes = b"") -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + chunks + b"0\r\n" + trailers + b"\r\n"


def parts_of(request: HttpRequest) -> list[bytes | memoryview]:
    """A request's body as an answer is given one."""
    return request.body if isinstance(request.body, list) else [request.body]
