"""What the connections of one server share."""

from __future__ import annotations

import asyncio
from collections import Counter
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from headrace.domain.errors import HeadraceError, ShuttingDown
from headrace.transport.http.heap import trim
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.messages import Handler, HttpResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from headrace.transport.http.connection import Connection

AsgiMessage: TypeAlias = "MutableMapping[str, Any]"
AsgiReceive: TypeAlias = "Callable[[], Awaitable[AsgiMessage]]"
AsgiSend: TypeAlias = "Callable[[AsgiMessage], Awaitable[None]]"
AsgiApp: TypeAlias = "Callable[[AsgiMessage, AsgiReceive, AsgiSend], Awaitable[None]]"

_RETRY_AFTER_S: Final = 1.0
_TRIM_FROM_BYTES: Final = 64 * 1024 * 1024
_AT_REST_BYTES: Final = 1024 * 1024  # small requests may go on


class Application(Protocol):
    """What a server serves: hot routes by handlers, all the rest by an ASGI app."""

    asgi: AsgiApp

    def handler(self, method: str, target: bytes) -> Handler | None:
        """The protocol-level handler of a request line, or None: the ASGI app takes it."""
        ...

    def is_upload(self, method: str, target: bytes) -> bool:
        """Whether the body may be of any size and take its time: the ASGI app bounds it."""
        ...

    def may_send(self, headers: Mapping[bytes, bytes], peer: str) -> HeadraceError | None:
        """Why a handler's request gets no body in; None where its sender is known.

        Asked before any of a body is read that is more than small, or of unknown size.
        """
        ...

    def refuse(
        self, target: bytes, headers: Mapping[bytes, bytes], error: HeadraceError
    ) -> HttpResponse:
        """The answer that tells a client of `error`.

        `target` and `headers` are as much of the request as was read: both may be empty.
        """
        ...

    def failed(
        self, target: bytes, headers: Mapping[bytes, bytes], error: BaseException
    ) -> HttpResponse:
        """Log a defect of ours with its traceback; the answer tells a client nothing of it."""
        ...


class Host:
    """State shared by all connections of a server; the server's sweep keeps `now` and the date.

    `now` is the loop's clock, at most one sweep old: timeouts of seconds need no better.
    """

    def __init__(
        self,
        *,
        application: Application,
        limits: HttpLimits,
        loop: asyncio.AbstractEventLoop,
        tasks: asyncio.TaskGroup,
        give_memory_back: Callable[[], None] = trim,
    ) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.tasks = tasks
        self.connections: set[Connection] = set()
        self.draining = False
        self.refusals: Counter[int] = Counter()  # by status
        self.buffered_bytes = 0  # of bodies that handlers have or are to have
        self.peak_bytes = 0  # most of them since memory was given back
        self._give_memory_back = give_memory_back
        self.now = 0.0
        self.date_line = b""
        self.tick()

    @property
    def busy(self) -> list[Connection]:
        """Connections that read or answer a request."""
        return [connection for connection in self.connections if connection.busy]

    def tick(self) -> None:
        """Read the clocks."""
        self.now = self.loop.time()
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode("ascii")

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; False where there are too many (it must then be closed)."""
        full = len(self.connections) >= self.limits.max_connections
        self.connections.add(connection)
        return not full

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self.connections.discard(connection)

    def tidy(self) -> None:
        """Give memory back to the system once large bodies, and their answers, are gone.

        What they leave free in the heap would else stay with the process for minutes.
        """
        if self.peak_bytes <= _TRIM_FROM_BYTES or self.buffered_bytes > _AT_REST_BYTES:
            return
        if sum(connection.unsent_bytes for connection in self.connections) <= _AT_REST_BYTES:
            self.peak_bytes = self.buffered_bytes
            self._give_memory_back()

    def count_refusal(self, status: int) -> None:
        """Count a request that the HTTP layer refused by itself."""
        self.refusals[status] += 1

    def cut_off(self, target: bytes, headers: Mapping[bytes, bytes]) -> HttpResponse:
        """The answer to a request that the end of the process does not wait for."""
        error = ShuttingDown("shutting down", retry_after_s=_RETRY_AFTER_S)
        return self.application.refuse(target, headers, error)
