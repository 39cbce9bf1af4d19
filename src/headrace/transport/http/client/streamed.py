"""One request on a connection of its own, whose answer is read as it comes.

Kept connections are for answers whose end is near and certain. A stream lasts, and whoever stops
reading it early closes its connection, which is how the endpoint is told.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any, Final, cast

import httptools

from headrace.domain.errors import EndpointTimeout, HeadraceError
from headrace.ports.upstream import Site
from headrace.transport.http.client.exchange import NO_ANSWER, broken
from headrace.transport.http.client.limits import ClientLimits

_logger = logging.getLogger(__name__)

_OK: Final = 200
_SWITCHING: Final = 101
_PAUSE_ABOVE_BYTES: Final = 256 * 1024  # of what came and was not taken: a slow reader slows it
_BROKEN_OFF: Final = "the endpoint broke off its answer"
_MALFORMED: Final = "the endpoint's answer is not HTTP as it is spoken here"


class StreamedExchange(asyncio.Protocol):
    """`deadline` is on the loop's clock and ends all of it. Awaits plain futures only."""

    def __init__(
        self, site: Site, *, limits: ClientLimits, deadline: float, tls: SSLContext | None = None
    ) -> None:
        self.status = 0  # known once `ask` has returned, as the headers are
        self.headers: dict[bytes, bytes] = {}  # names in lower case
        self._site = site
        self._limits = limits
        self._deadline = deadline
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._request: Sequence[bytes] = ()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0  # of pieces
        self._framing_bytes = 0  # of reads since any part of the body
        self._begun = self._headed = self._complete = self._closed = self._paused = False
        self._error: HeadraceError | None = None
        self._news: asyncio.Future[None] | None = None

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request, and wait for the head of its answer.

        Raises:
            EndpointFailed: the endpoint was not reached, or its answer is none.
            EndpointTimeout: the deadline passed.
        """
        if self._deadline <= self._loop.time():
            self._expire()
        elif self._deadline != math.inf:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        if self._error is None:
            self._request = (head, body)
            self._connecting = self._loop.create_task(self._connect())
        while not self._headed:
            await self._wait()

    async def piece(self) -> bytes:
        """The next part of the answer's body; b"" at its end. Raises as `ask` does."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait()
        piece = self._pieces.popleft()
        self._held_bytes -= len(piece)
        if self._paused and self._held_bytes <= _PAUSE_ABOVE_BYTES and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def rest(self, limit_bytes: int) -> bytes:
        """All of the body that is left. Raises EndpointFailed where it is larger."""
        pieces, size_bytes = [], 0
        while piece := await self.piece():
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise broken(f"the endpoint's answer is over the limit of {limit_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection at once. To be called at the end, whatever that was."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._parser = None  # it refers back here: undo the cycle

    # --- asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:
            self._transport.abort()
            return
        self._transport.writelines(self._request)
        self._request = ()

    def data_received(self, data: bytes) -> None:
        if self._closed or self._complete or self._error is not None:
            return
        self._begun = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(broken(_MALFORMED, "101 Switching Protocols, which was not asked for"))
        except httptools.HttpParserError as error:
            self._fail(broken(_MALFORMED, str(error)))
        if self._framing_bytes > self._limits.max_head_bytes:
            self._fail(broken(_MALFORMED, "headers over the limit"))
        if self._held_bytes > _PAUSE_ABOVE_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._complete:
            message = _BROKEN_OFF if self._begun else NO_ANSWER
            self._fail(broken(message, f"{message}: {exc}" if exc else message))

    # --- llhttp ------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headed:
            return  # a trailer
        name = name.lower()
        if name in self.headers:
            value = self.headers[name] + b", " + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < _OK:
            if status == _SWITCHING:
                self._fail(broken(_MALFORMED, "an answer of status 101"))
            self.headers = {}
            return
        headers = self.headers
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._fail(broken(_MALFORMED, "a Content-Encoding, though none was asked for"))
        elif (
            b"content-length" not in headers
            and headers.get(b"transfer-encoding", b"").lower() != b"chunked"
        ):  # its end would be that of the connection, as that of a truncated one is
            self._fail(broken(_MALFORMED, "neither Content-Length nor chunks"))
        else:
            self.status = status
            self._framing_bytes = 0
            self._headed = True

    def on_body(self, data: bytes) -> None:
        self._framing_bytes = 0
        self._pieces.append(data)
        self._held_bytes += len(data)

    def on_message_complete(self) -> None:
        if self._headed:
            self._complete = True

    # -----------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        site = self._site
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await self._loop.create_connection(
                    lambda: self,
                    str(site.address),
                    site.port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else site.host.strip("[]"),
                )
        except OSError as error:
            self._unreached(error)
        except Exception as error:  # the task's root: whoever waits must hear of it
            _logger.exception("a connection could not be made")
            self._unreached(error)

    def _unreached(self, error: Exception) -> None:
        site = self._site
        reason = f"{site.address} port {site.port}: {type(error).__name__}: {error}"
        failure = broken("the endpoint could not be reached", reason)
        failure.sent = False
        self._fail(failure)

    def _expire(self) -> None:
        self._fail(EndpointTimeout("the endpoint did not answer in time"))

    def _fail(self, error: HeadraceError) -> None:
        if self._error is None:
            self._error = error
            if self._transport is not None:
                self._transport.abort()
            self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _wait(self) -> None:
        """Wait until something has happened. Raises what the exchange failed with."""
        if self._error is None:
            self._news = self._loop.create_future()
            await self._news
            self._news = None
        if self._error is not None and not (self._pieces and self._headed):
            raise self._error
