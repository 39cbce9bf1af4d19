"""The bridge from a connection to an ASGI application, for every path that is not hot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from headrace.transport.http.messages import STATUS_LINES, HttpResponse, origin_form, path_of

if TYPE_CHECKING:
    from headrace.transport.http.connection import Connection
    from headrace.transport.http.host import AsgiMessage

_BUFFER_BYTES: Final = 256 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})


class AsgiExchange:
    """One request whose body and answer stream through an ASGI application."""

    def __init__(
        self,
        connection: Connection,
        *,
        method: str,
        target: bytes,
        headers: Mapping[bytes, bytes],
        http_version: str,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.keep_alive = keep_alive
        self.started = False  # the head of the answer is out
        self._connection = connection
        self._method = method
        self._target = target
        self._headers = headers
        self._http_version = http_version
        self._expects_continue = expects_continue
        self._scope = _scope(connection, method, target, headers, http_version)
        self._input: list[bytes] = []
        self._input_bytes = 0
        self._input_ended = False
        self._gone = False
        self._wake = asyncio.Event()  # input has come, or the client has gone
        self._writable = asyncio.Event()
        self._writable.set()
        self._head: bytes | None = None
        self._chunked = False
        self._length_left = 0
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the application in a task of the server's group."""
        self._task = self._connection.host.tasks.create_task(self._run())

    def cancel(self) -> None:
        """Tell the application that the client is gone."""
        self._gone = True
        self._wake.set()
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._input.append(data)
        self._input_bytes += len(data)
        if self._input_bytes > _BUFFER_BYTES:
            self._connection.pause_reading()
        self._wake.set()

    def feed_eof(self) -> None:
        """The body is complete."""
        self._input_ended = True
        self._wake.set()

    def pause_writing(self) -> None:
        """The client takes nothing for the moment."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client takes data again."""
        self._writable.set()

    async def _run(self) -> None:
        connection = self._connection
        failure: HttpResponse | None = None
        try:
            await connection.host.application.asgi(self._scope, self._receive, self._send)
        except asyncio.CancelledError:
            if not connection.lost and not self._ended and not self.started:
                self._give_up(connection.host.cut_off(self._target, self._headers))
            return  # the task ends here on purpose: cancel() is the only one who cancels it
        except Exception as error:  # noqa: BLE001 - the root of the request's task
            failure = self._failed(error)
        if self._ended or connection.lost:
            return
        if self.started:
            connection.abort()  # a short answer must not look whole
        else:
            self._give_up(failure or self._failed(RuntimeError("a request was left unanswered")))

    def _failed(self, error: Exception) -> HttpResponse:
        return self._connection.host.application.failed(self._target, self._headers, error)

    def _give_up(self, response: HttpResponse) -> None:
        self.keep_alive = False
        self._connection.respond(self, response)

    async def _receive(self) -> AsgiMessage:
        if self._expects_continue and not self.started and not self._input_bytes:
            self._connection.write([_CONTINUE])
            self._expects_continue = False
        while not (self._gone or self._input or self._input_ended):
            self._wake.clear()
            await self._wake.wait()
        if self._gone or self._ended:
            return {"type": "http.disconnect"}
        if self._input_ended and not self._input and self._scope["headrace.drained"]:
            self._wake.clear()
            while not self._gone:
                await self._wake.wait()
            return {"type": "http.disconnect"}
        body = b"".join(self._input)
        self._input.clear()
        self._input_bytes = 0
        self._connection.resume_reading()
        self._scope["headrace.drained"] = self._input_ended
        return {"type": "http.request", "body": body, "more_body": not self._input_ended}

    async def _send(self, message: AsgiMessage) -> None:
        if self._gone or self._ended:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
            return
        body = bytes(message.get("body", b""))
        more = message.get("more_body", False)
        self._write(body, more=more)
        if not more:
            self._ended = True
            if not self._input_ended:
                self.keep_alive = False  # the rest of the body would be read as a request
            self._connection.finish(self)
        else:
            await self._writable.wait()

    def _begin(self, status: int, headers: Any) -> None:
        lines = [STATUS_LINES[status], self._connection.host.date_line]
        length: int | None = None
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            lines.append(b"%b: %b\r\n" % (lowered, value))
        bodiless = self._method == "HEAD" or status in _BODILESS
        self._length_left = 0 if bodiless or length is None else length
        if length is None and not bodiless:
            if self._http_version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
                self._length_left = -1  # the end of the connection ends the body
        if self._connection.host.draining or not self._input_ended:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def _write(self, body: bytes, *, more: bool) -> None:
        parts: list[bytes] = []
        if self._head is not None:
            parts.append(self._head)
            self._head = None
            self.started = True
        if self._chunked:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        elif self._length_left:
            if self._length_left > 0:
                body = body[: self._length_left]
                self._length_left -= len(body)
            parts.append(body)
        if parts:
            self._connection.write(parts)
        if not more and self._length_left > 0:
            self._connection.abort()


def _scope(
    connection: Connection,
    method: str,
    target: bytes,
    headers: Mapping[bytes, bytes],
    http_version: str,
) -> dict[str, Any]:
    raw_path, _, query = origin_form(target).partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": path_of(target),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": list(headers.items()),
        "client": connection.address("peername"),
        "server": connection.address("sockname"),
        "state": {},
        "headrace.drained": False,
    }
