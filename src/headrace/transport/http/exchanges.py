"""The answers that a connection gives, one after the other."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Protocol

from headrace.transport.http.drive import Drive
from headrace.transport.http.messages import Handler, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from headrace.transport.http.connection import Connection


class Exchange(Protocol):
    """One request and its answer."""

    keep_alive: bool

    def start(self) -> None:
        """Begin; the connection gives its answers strictly in order."""

    def cancel(self) -> None:
        """The client is gone: stop, or never start, and release what was taken."""


class Refusal:
    """An answer that the HTTP layer itself gives; the connection ends with it."""

    __slots__ = ("_connection", "_response", "keep_alive")

    def __init__(self, connection: Connection, response: HttpResponse) -> None:
        self._connection = connection
        self._response = response
        self.keep_alive = False

    def start(self) -> None:
        self._connection.respond(self, self._response)

    def cancel(self) -> None:
        pass


class HandlerExchange(Drive[HttpResponse]):
    """A whole request answered by a handler, without a task.

    `held_bytes` of the host's count are its own from now on; they are given back at its end.
    """

    __slots__ = ("_connection", "_held_bytes", "_request", "keep_alive")

    def __init__(
        self,
        connection: Connection,
        handler: Handler,
        request: HttpRequest,
        *,
        keep_alive: bool,
        held_bytes: int,
    ) -> None:
        super().__init__(handler(request), connection.host.loop)
        self._connection = connection
        self._request = request
        self._held_bytes = held_bytes
        self.keep_alive = keep_alive

    def done(self, result: HttpResponse) -> None:
        self._connection.host.buffered_bytes -= self._held_bytes  # no call, at every request
        self._held_bytes = 0
        self._connection.respond(self, result)

    def failed(self, error: BaseException) -> None:
        self._give_back()
        host, request = self._connection.host, self._request
        if not isinstance(error, asyncio.CancelledError):
            response = host.application.failed(request.target, request.headers, error)
        elif not self._connection.lost:
            response = host.cut_off(request.target, request.headers)
        else:
            return
        self.keep_alive = False
        self._connection.respond(self, response)

    def cancel(self) -> None:
        super().cancel()
        if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_CLOSED:
            self._give_back()  # it was never started, so neither `done` nor `failed` will be called

    def _give_back(self) -> None:
        self._connection.host.buffered_bytes -= self._held_bytes
        self._held_bytes = 0
