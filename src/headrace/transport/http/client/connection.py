"""One connection to an endpoint: llhttp parses, one exchange at a time, never a doubtful one.

A connection is kept only behind an answer whose end was certain. Whatever else happens on it, it
is closed, because what it would bring next could be taken for the answer to another request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import httptools

from headrace.domain.errors import EndpointFailed
from headrace.transport.http.client.exchange import NO_ANSWER, Answer, Exchange, broken
from headrace.transport.http.client.limits import ClientLimits

_JOIN_BELOW_BYTES: Final = 16 * 1024  # one copy is cheaper than one more system call
_SPLIT_ABOVE_BYTES: Final = 16 * 1024  # of a read; below it llhttp's copy of the body is cheaper
_MAX_REPEATS: Final = 200  # of headers whose name came before
_MAX_INTERIM: Final = 16  # answers of 1xx before the one that counts
_MAX_PIECES: Final = 1024  # of a body, before they become one
_END_OF_HEAD: Final = b"\r\n\r\n"
_SWITCHING: Final = 101
_OK: Final = 200
_BODILESS: Final = frozenset({204, 205, 304})  # nothing that is asked here has such an answer
_CHUNKED: Final = -1  # in place of a body's length
_BROKEN_OFF: Final = "the endpoint broke off its answer"
_MALFORMED: Final = "the endpoint's answer is not HTTP as it is spoken here"


class ClientConnection(asyncio.Protocol):
    """The protocol object that asyncio calls; also the parser's callbacks.

    `released` is called with a connection that can take the next exchange, and `lost` with one
    that is gone, and with the exchange that had not one byte of an answer then and may be
    repeated: the connection had answered before.
    """

    __slots__ = (
        "_answered",
        "_begun",
        "_body",
        "_body_bytes",
        "_bytes_left",
        "_complete",
        "_exchange",
        "_framing_bytes",
        "_headers",
        "_interim",
        "_keep_alive",
        "_length",
        "_limits",
        "_lost",
        "_max_body_bytes",
        "_packed",
        "_parser",
        "_refusal",
        "_released",
        "_repeats",
        "_split_above_bytes",
        "_status",
        "_transport",
        "gone",
        "idle_since",
    )

    def __init__(
        self,
        *,
        limits: ClientLimits,
        released: Callable[[ClientConnection], None],
        lost: Callable[[ClientConnection, Exchange | None], None],
    ) -> None:
        self.gone = False  # closed, or about to be
        self.idle_since = 0.0  # on the loop's clock
        self._limits = limits
        self._released = released
        self._lost = lost
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser: Any = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._answered = False  # whether it has answered ever
        self._begun = False  # whether a byte of the answer has come
        self._complete = False
        self._refusal: EndpointFailed | None = None  # found inside a callback
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._framing_bytes = 0  # of reads since any part of a body
        self._repeats = 0
        # any head of a smaller read is within its limit
        self._split_above_bytes = min(_SPLIT_ABOVE_BYTES, limits.max_head_bytes)
        self._interim = 0
        self._keep_alive = False
        self._length = 0
        self._body: list[bytes | memoryview] = []
        self._body_bytes = 0
        self._bytes_left = 0  # of a body that goes past llhttp
        self._max_body_bytes = 0  # of the answer that is coming
        self._packed = 0  # parts of the body that are many pieces joined

    def ask(self, exchange: Exchange) -> None:
        """Send a request; `exchange` is told its end."""
        self._exchange = exchange
        exchange.connection = self
        self._begun = False
        self._max_body_bytes = self._limits.max_body_bytes
        if exchange.max_body_bytes is not None:
            self._max_body_bytes = min(self._max_body_bytes, exchange.max_body_bytes)
        body = exchange.body
        if not body:
            self._transport.write(exchange.head)
        elif sum(map(len, body)) < _JOIN_BELOW_BYTES:
            self._transport.write(b"".join((exchange.head, *body)))
        else:
            self._transport.writelines([exchange.head, *body])

    def take_back(self, exchange: Exchange) -> None:
        """Close, if `exchange` is still under way here, so that the endpoint sees it is over."""
        if self._exchange is exchange:
            self.abandon()

    def abandon(self) -> None:
        """Close at once, made or not; an exchange under way is not told."""
        if self._transport is not None:
            self._transport.abort()  # what was written and not sent yet is of no use
        self._leave(None)

    # --- asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nothing was asked: nothing can come that means anything
            self.abandon()
            return
        self._begun = True
        if self._bytes_left:
            self._take_past_parser(data)
            return
        before = self._body_bytes
        try:
            if len(data) <= self._split_above_bytes or self._length or not self._feed_split(data):
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(broken(_MALFORMED, "101 Switching Protocols, which was not asked for"))
            return
        except httptools.HttpParserError as error:
            self._fail(self._refusal or broken(_MALFORMED, str(error)))
            return
        if self._refusal is not None:
            self._fail(self._refusal)
        elif self._complete:
            self._finish()
        elif self._length > 0:
            self._bytes_left = self._length - self._body_bytes
        else:
            self._bound_framing(len(data), went_on=before == self._body_bytes)

    def eof_received(self) -> None:
        """Closes. It is over here at once: nothing may be asked until asyncio says so, too."""
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None or self._begun:
            self._leave(None)
        elif self._answered:
            self._leave(exchange)
            return
        else:
            self._leave(None)
        if exchange is not None:
            message = _BROKEN_OFF if self._begun else NO_ANSWER
            exchange.end(broken(message, f"{message}: {exc}" if exc else message))

    # --- llhttp ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._refuse("bytes behind the end of the answer")
            return
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        name = name.lower()
        if name in headers:
            self._repeats += 1  # each costs a copy of all before it
            if self._repeats > _MAX_REPEATS:
                self._refuse_head()
                return
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        self._status = status = parser.get_status_code()
        self._framing_bytes = 0
        if status < _OK:
            self._interim += 1
            if self._interim > _MAX_INTERIM or status == _SWITCHING:
                self._refuse(f"{self._interim} interim answers, the last of status {status}")
            return
        self._keep_alive = parser.should_keep_alive()  # not readable any more at the end
        if b"connection" in headers and parser.get_http_version() != "1.1":
            self._keep_alive = False  # 1.0 with "keep-alive" has no framing to rely on
        if (
            b"content-encoding" in headers
            and headers[b"content-encoding"].lower() != b"identity"
            and not (self._exchange is not None and self._exchange.coded)
        ):
            self._refuse("a Content-Encoding, though none was asked for")
        elif status in _BODILESS:
            self._refuse(f"status {status}")
        elif (length := headers.get(b"content-length")) is not None:
            self._length = int(length)
            if self._length > self._max_body_bytes:
                self._refuse_body()
        elif headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._length = _CHUNKED
        else:  # its end would be that of the connection, as that of a truncated one is
            self._refuse("neither Content-Length nor chunks")

    def on_body(self, data: bytes) -> None:
        self._take(data)
        if self._length < 0 and self._body_bytes > self._max_body_bytes:
            self._refuse_body()

    def on_message_complete(self) -> None:
        if self._status >= _OK:
            self._complete = True

    # -----------------------------------------------------------------------------------------

    def _feed_split(self, data: bytes) -> bool:
        """Feed a read's head alone to llhttp, and keep its body as a view; False if it has none."""
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if end < len(_END_OF_HEAD):
            return False
        if end + self._framing_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            return True
        self._parser.feed_data(data[:end])
        rest = memoryview(data)[end:]
        if self._refusal is not None:
            return True
        if self._length <= 0 or self._complete:
            if rest:
                self._parser.feed_data(rest)
            return True
        if len(rest) > self._length:
            self._refuse("bytes behind the end of the answer")
            return True
        if rest:
            self._take(rest)
        if len(rest) == self._length:
            self._end_past_parser()
        return True

    def _take_past_parser(self, data: bytes) -> None:
        """Take more of a body whose length is known: llhttp would only copy it."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._fail(broken(_MALFORMED, "bytes behind the end of the answer"))
            return
        self._take(data)
        if not self._bytes_left:
            self._end_past_parser()
            self._finish()

    def _end_past_parser(self) -> None:
        self._complete = True
        self._parser = httptools.HttpResponseParser(self)  # the old one still waits for the body

    def _take(self, data: bytes | memoryview) -> None:
        self._body_bytes += len(data)
        body = self._body
        body.append(data)
        if len(body) - self._packed > _MAX_PIECES:  # small ones cost many times what they hold
            body[self._packed :] = [b"".join(body[self._packed :])]
            self._packed += 1

    def _bound_framing(self, size_bytes: int, *, went_on: bool) -> None:
        """Bound what llhttp keeps of a header, a trailer or a chunk's extension not yet whole."""
        self._framing_bytes = self._framing_bytes + size_bytes if went_on else 0
        if self._framing_bytes > self._limits.max_head_bytes:
            self._refuse_head()
            assert self._refusal is not None  # noqa: S101 - just set
            self._fail(self._refusal)

    def _refuse_head(self) -> None:
        limit = self._limits.max_head_bytes
        self._refuse(f"headers over the limit of {limit} bytes or {_MAX_REPEATS} repeats")

    def _refuse_body(self) -> None:
        limit = self._max_body_bytes
        self._refusal = broken(f"the endpoint's answer is over the limit of {limit} bytes")

    def _refuse(self, reason: str) -> None:
        if self._refusal is None:
            self._refusal = broken(_MALFORMED, reason)

    def _fail(self, error: EndpointFailed) -> None:
        exchange = self._exchange
        self.abandon()
        if exchange is not None:
            exchange.end(error)

    def _finish(self) -> None:
        """Hand over the answer, and the connection to the next exchange if its end was certain."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None  # noqa: S101 - data_received saw it
        answer = Answer(self._status, self._headers, self._body)
        self._answered = True
        self._complete = False
        self._body = []  # a connection that idles must not hold what it brought last
        self._body_bytes = self._length = self._framing_bytes = 0
        self._packed = self._interim = self._repeats = 0
        # where an answer came before its request was sent whole, the rest of that would be read
        # as the next one
        if self._keep_alive and not self._transport.get_write_buffer_size():
            self._released(self)
        else:
            self.abandon()
        exchange.end(answer)

    def _leave(self, unanswered: Exchange | None) -> None:
        """Tell that this connection is gone, once."""
        if self.gone:
            return
        self.gone = True
        self._exchange = None
        self._parser = None  # it refers back here: undo the cycle
        self._headers = {}
        self._body = []
        if unanswered is not None:
            unanswered.connection = None
        self._lost(self, unanswered)
