"""One client connection: llhttp parses, one exchange at a time answers, in the order asked.

Bounds are enforced here, before a handler sees anything: size of the head, size of the body,
time for both (by the server's sweep), one answer under way, no reading ahead of it. Who is to
send a body that is more than small is asked for the credential before any of it is read.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from headrace.domain.errors import (
    HeadraceError,
    HeadTooLarge,
    MalformedHttp,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    TooManyConnections,
    Unsupported,
)
from headrace.transport.http.asgi import AsgiExchange
from headrace.transport.http.exchanges import Exchange, HandlerExchange, Refusal
from headrace.transport.http.messages import (
    STATUS_LINES,
    Handler,
    HttpRequest,
    HttpResponse,
)
from headrace.transport.http.pieces import Pieces

if TYPE_CHECKING:
    from headrace.transport.http.host import Host

_CLOSE: Final = b"connection: close\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BELOW_BYTES: Final = 16 * 1024  # one copy is cheaper than one more system call
_MAX_HEADERS: Final = 200
_MAX_SMALL_PIECES: Final = 1024  # of a small body, before they are gathered as a large one is
_SMALL_BYTES: Final = 64 * 1024  # a body that may come before its sender is known
_LINGER_S: Final = 2.0
_RETRY_AFTER_S: Final = 1.0
_MAPPED: Final = "::ffff:"  # an address of IPv4 on a socket for both families
_UPLOAD_STEP_BYTES: Final = 1024 * 1024  # of an upload, in the time that a whole body else has


class Phase(enum.Enum):
    """What the connection reads at the moment."""

    IDLE = enum.auto()  # nothing of a next request has come
    HEAD = enum.auto()
    BODY = enum.auto()
    DEAF = enum.auto()  # the last answer is out or on its way; what still comes is thrown away


# an enumeration's attribute costs a slow look-up each time, and these are read at every callback
_IDLE: Final = Phase.IDLE
_HEAD: Final = Phase.HEAD
_BODY: Final = Phase.BODY
_DEAF: Final = Phase.DEAF


class Connection(asyncio.Protocol):
    """The protocol object that asyncio calls; also the parser's callbacks."""

    __slots__ = (
        "_active",
        "_body",
        "_body_bytes",
        "_bytes_left",
        "_handler",
        "_head_bytes",
        "_head_read",
        "_headers",
        "_held_bytes",
        "_input",
        "_keep_alive",
        "_length",
        "_method",
        "_parser",
        "_peer",
        "_pending",
        "_phase",
        "_pieces",
        "_plain_head",
        "_pumping",
        "_read_paused",
        "_repeats",
        "_target",
        "_transport",
        "_unsent",
        "_upload_due",
        "_write_paused",
        "deadline",
        "host",
        "lost",
    )

    def __init__(self, host: Host) -> None:
        self.host = host
        self.lost = False
        self.deadline = math.inf  # on the loop's clock; the server's sweep calls expire() after it
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._peer = ""
        self._phase: Phase = _IDLE
        self._active: Exchange | None = None
        self._pending: deque[Exchange] = deque()
        self._pumping = False
        self._write_paused = False
        self._read_paused = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0  # of the target and the whole headers
        self._head_read = 0  # of the last reads that were all head, framing or trailers
        self._repeats = 0  # headers whose name had come before
        self._unsent = 0  # bytes that waited for the client when the deadline was set
        self._body: list[bytes | memoryview] = []
        self._body_bytes = 0
        self._pieces: Pieces | None = None  # takes a body that is more than small
        self._length = 0  # of such a body, where its head told
        self._bytes_left = 0  # of it that goes past llhttp
        self._held_bytes = 0  # of the body in either, as the host counts them
        self._method = ""
        self._plain_head = b""  # of a request that asked for an upgrade
        self._keep_alive = True
        self._handler: Handler | None = None
        self._input: AsgiExchange | None = None  # the ASGI exchange that takes the body
        self._upload_due = 0  # bytes of an upload at which its client gets more time; 0: no upload

    # --- asyncio -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = self.address("peername")
        self._peer = "" if peer is None else peer[0]
        self.deadline = self.host.now + self.host.limits.idle_timeout_s
        if not self.host.admit(self):
            error = TooManyConnections("too many connections", retry_after_s=_RETRY_AFTER_S)
            self._refuse(error)

    def data_received(self, data: bytes) -> None:
        if self._phase is _DEAF:
            return
        if self._bytes_left:
            self._take_past_parser(data)
            return
        self._parse(data)

    def _parse(self, data: bytes | memoryview) -> None:
        headers, body_bytes = self._headers, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._malformed(error)
        if self._phase is not _IDLE:
            self._bound_read(
                len(data), went_on=headers is self._headers and body_bytes == self._body_bytes
            )
        if self._length and self._phase is _BODY:
            self._bytes_left = self._length - self._body_bytes
        if self._write_paused:  # what was read must not put off the end of a client that only asks
            self.deadline = self.host.now + self.host.limits.write_timeout_s

    def eof_received(self) -> None:
        """Closes: a client that half-closes cannot be told from one that went away."""

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True
        self._phase = _DEAF
        self.host.forget(self)
        self._parser = None  # it refers back here: undo the cycle, with what it holds of a head
        self._headers = {}
        self._let_go()
        active, self._active = self._active, None
        self._drop_pending()
        if active is not None:
            active.cancel()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._unsent = self._transport.get_write_buffer_size()
        self.deadline = self.host.now + self.host.limits.write_timeout_s
        if isinstance(self._active, AsgiExchange):
            self._active.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused = False
        self.deadline = math.inf
        if isinstance(self._active, AsgiExchange):
            self._active.resume_writing()
        self._pump()
        if self._active is None and not self._write_paused:
            self._arm()

    # --- llhttp ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._phase is _DEAF:  # it was refused or closed earlier in the same read
            return
        self._phase = _HEAD
        self._target = b""
        self._headers = {}
        self._head_bytes = 0
        self._repeats = 0
        self._body_bytes = 0
        if self._active is None:
            self.deadline = self.host.now + self.host.limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _HEAD:  # trailers, or after a refusal
            return
        headers = self._headers
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.host.limits.max_head_bytes or len(headers) >= _MAX_HEADERS:
            self._refuse_head()
            return
        name = name.lower()
        if name in headers:
            if name == b"host":
                self._refuse(MalformedHttp("malformed HTTP request: several Host headers"))
                return
            self._repeats += 1  # each costs a copy of all before it
            if len(headers) + self._repeats > _MAX_HEADERS:
                self._refuse_head()
                return
            value = headers[name] + b", " + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        if self._phase is not _HEAD:
            return
        parser, headers = self._parser, self._headers
        self._phase = _BODY
        self._keep_alive = parser.should_keep_alive()  # not readable any more at the end
        method = self._method = parser.get_method().decode("ascii")
        usual = self._keep_alive and b"connection" not in headers and b"host" in headers
        if not (usual or self._speaks(parser.get_http_version())):  # slow to ask for
            return
        length = headers.get(b"content-length")
        if length is not None:
            size_bytes = int(length)
            if size_bytes > self.host.limits.max_body_bytes and not self._is_upload():
                self._refuse_body()
                return
            small = size_bytes <= _SMALL_BYTES
        elif (coding := headers.get(b"transfer-encoding")) is None:
            size_bytes, small = 0, True
        elif coding.strip().lower() == b"chunked":
            size_bytes, small = 0, False  # it may become any size
        else:
            self._refuse_coding()
            return
        self._handler = self.host.application.handler(method, self._target)
        if self._active is None:
            self.deadline = self.host.now + self.host.limits.body_timeout_s
        if self._handler is None:
            if method == "CONNECT":
                self._refuse(Unsupported("CONNECT: this server is no proxy"))
                return
            self._upload_due = _UPLOAD_STEP_BYTES if self._is_upload() else 0
            self._input = AsgiExchange(
                self,
                method=method,
                target=self._target,
                headers=headers,
                http_version=parser.get_http_version(),
                keep_alive=self._keep_alive,
                expects_continue=b"expect" in headers and self._expects_continue(),
            )
            self._enqueue(self._input)
            return
        if not (small or self._may_send(size_bytes)):
            return
        if b"expect" in headers and not self._pending and self._active is None:
            self._continue()

    def on_body(self, data: bytes | memoryview) -> None:
        if self._phase is not _BODY:
            return
        size_bytes = len(data)
        self._body_bytes += size_bytes
        host = self.host
        if self._body_bytes > host.limits.max_body_bytes and not self._upload_due:
            self._refuse_body()
        elif self._input is None:
            buffered_bytes = host.buffered_bytes + size_bytes
            if buffered_bytes > host.limits.max_buffered_bytes:
                self._refuse_for_room()
                return
            host.buffered_bytes = buffered_bytes
            self._held_bytes += size_bytes
            if buffered_bytes > host.peak_bytes:  # noqa: PLR1730 - a call at every piece
                host.peak_bytes = buffered_bytes
            if self._pieces is None:
                self._body.append(data)
            else:
                self._pieces.add(data)
        else:
            if self._upload_due and self._body_bytes >= self._upload_due:
                self._upload_due = self._body_bytes + _UPLOAD_STEP_BYTES
                self.deadline = host.now + host.limits.body_timeout_s
            self._input.feed(bytes(data))  # which it is: past llhttp goes what handlers take

    def on_message_complete(self) -> None:
        if self._phase is not _BODY:
            return
        self._phase = _IDLE
        self.deadline = math.inf
        if self._input is not None:
            self._input.feed_eof()
            self._input = None
            return
        handler = self._handler
        assert handler is not None  # noqa: S101 - on_headers_complete set it or _input
        body: bytes | list[bytes | memoryview]
        if self._pieces is None:
            body = b"".join(self._body)  # copies nothing where one read brought it all
        else:
            body = self._pieces.parts  # whoever only passes it on needs no copy
            if self._body_bytes <= _SMALL_BYTES:
                body = b"".join(body)
            self._pieces = None
            self._length = 0
        self._body = []  # a connection that idles must not hold what it sent last
        request = HttpRequest(self._method, self._target, self._headers, body, self._peer)
        exchange = HandlerExchange(
            self, handler, request, keep_alive=self._keep_alive, held_bytes=self._held_bytes
        )
        self._held_bytes = 0
        self._enqueue(exchange)

    # --- exchanges ---------------------------------------------------------------------------

    def respond(self, exchange: Exchange, response: HttpResponse) -> None:
        """Write the one answer of `exchange` and go on to the next."""
        if self.lost or exchange is not self._active:
            return
        if response.close or self.host.draining:
            exchange.keep_alive = False
        body = response.body
        length = len(body[0]) if len(body) == 1 else sum(map(len, body))
        head = b"%b%b%bcontent-length: %d\r\n%b\r\n" % (
            STATUS_LINES[response.status],
            response.headers,
            self.host.date_line,
            length,
            b"" if exchange.keep_alive else _CLOSE,
        )
        if length < _JOIN_BELOW_BYTES:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.writelines([head, *body])
        self.finish(exchange)

    def finish(self, exchange: Exchange) -> None:
        """The answer of `exchange` is written whole."""
        self._active = None
        if not exchange.keep_alive:
            self.close()
            return
        if self._pending:
            self._pump()
        elif self._phase is _IDLE and not self._write_paused:
            self.deadline = self.host.now + self.host.limits.idle_timeout_s
        elif not self._write_paused:
            self._arm()
        if self._read_paused and not self._pending:
            self.resume_reading()

    def write(self, parts: Sequence[bytes]) -> None:
        """Write raw bytes of the active exchange."""
        if not self.lost:
            self._transport.writelines(parts)

    def pause_reading(self) -> None:
        """Take no more from the client until `resume_reading`."""
        if not (self._read_paused or self.lost or self._transport.is_closing()):
            self._read_paused = True
            self._transport.pause_reading()
            if self._input is not None:  # it is the application that takes its time
                self.deadline = math.inf

    def resume_reading(self) -> None:
        """Undo `pause_reading`; harmless where nothing is paused."""
        if self._read_paused and not (self.lost or self._transport.is_closing()):
            self._read_paused = False
            self._transport.resume_reading()
            if self._input is not None:
                self.deadline = self.host.now + self.host.limits.body_timeout_s

    def address(self, kind: str) -> tuple[str, int] | None:
        """The socket's "peername" or "sockname", where it has a host and a port."""
        name = self._transport.get_extra_info(kind)
        if not isinstance(name, tuple):
            return None
        host: str = name[0]
        # the same client by whichever socket, so that it is counted once
        return host.removeprefix(_MAPPED) if "." in host else host, name[1]

    def close(self) -> None:
        """Close after what is written has gone out, reading on so that the client sees it."""
        if self.lost or self._transport.is_closing():
            return
        unread = self._phase is not _IDLE
        self._phase = _DEAF
        self._let_go()
        self._drop_pending()
        self._unsent = self._transport.get_write_buffer_size()
        self._arm()
        if unread and self._transport.can_write_eof():
            # closing with unread input would reset the connection and destroy the answer
            self.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    @property
    def busy(self) -> bool:
        """Whether a request is being read or answered, or an answer is not taken yet."""
        if self.lost:
            return False
        return bool(
            self._active
            or self._pending
            or self._phase in {_HEAD, _BODY}
            or self._transport.get_write_buffer_size()
        )

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def close_if_idle(self) -> None:
        """Close unless a request is being read or answered."""
        if self._phase is _IDLE and not (self._active or self._pending):
            self.close()

    def cancel(self) -> None:
        """End the exchange under way; its client gets a 503 where nothing was sent yet."""
        if self._active is not None:
            self._active.cancel()
        elif not self.lost:
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        if not self.lost:
            self._transport.abort()

    def expire(self) -> None:
        """The deadline has passed: answer 408 where a request was begun, else just close."""
        self.deadline = math.inf
        if self._write_paused or self._phase is _DEAF:
            unsent = self._transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:  # slow, but it takes
                self._unsent = unsent
                self.deadline = self.host.now + self.host.limits.write_timeout_s
            else:
                self.abort()
        elif self._phase is _IDLE:
            self.close_if_idle()
        else:
            self._refuse(RequestTimeout("the request did not arrive in time"))

    def _arm(self) -> None:
        """Set the deadline of the client, now that the next step is its own."""
        limits = self.host.limits
        if self._phase is _IDLE:
            wait_s = limits.idle_timeout_s
        elif self._phase is _HEAD:
            wait_s = limits.head_timeout_s
        elif self._phase is _BODY:
            wait_s = limits.body_timeout_s
        else:
            wait_s = limits.write_timeout_s if self._unsent else _LINGER_S
        self.deadline = self.host.now + wait_s

    def _speaks(self, version: str) -> bool:
        """Whether the request goes on: it is refused, or read once more by `_read_on`, if not."""
        if version not in {"1.0", "1.1"}:
            msg = f"malformed HTTP request: HTTP/{version} is not spoken here"
            self._refuse(MalformedHttp(msg))
            return False
        if version == "1.1" and b"host" not in self._headers:
            self._refuse(MalformedHttp("malformed HTTP request: no Host header"))
            return False
        if b"upgrade" in self._headers and self._parser.should_upgrade():
            connection = b"keep-alive" if self._keep_alive else b"close"
            headers = {**self._headers, b"connection": connection}
            del headers[b"upgrade"]
            lines = [b"%b: %b\r\n" % header for header in headers.items()]
            line = b"%b %b HTTP/%b\r\n" % (self._method.encode(), self._target, version.encode())
            self._plain_head = b"".join((line, *lines, b"\r\n"))
            self._phase = _HEAD  # still: the same head comes again
            return False
        if version == "1.0":
            # its client would wait for "Connection: keep-alive", which is never sent
            self._keep_alive = False
        return True

    def _read_on(self, rest: memoryview) -> None:
        """Read on where llhttp stopped: behind the head of a request that asks for an upgrade.

        None is granted, so the request is as good as one that did not ask; its body, which llhttp
        leaves aside, belongs to it. A new parser is shown the head without the wish.
        """
        while self._phase is not _DEAF:
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(self._plain_head)
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                self._malformed(error)
            return

    def _take_past_parser(self, data: bytes) -> None:
        """Take more of a large body whose length is known: llhttp would only copy it."""
        left = self._bytes_left - len(data)
        if left > 0:
            self._bytes_left = left
            self.on_body(data)
            return
        end = self._bytes_left
        self._bytes_left = 0
        self._parser = httptools.HttpRequestParser(self)  # the old one still waits for the body
        if left == 0:
            self.on_body(data)
            self.on_message_complete()
            return
        view = memoryview(data)
        self.on_body(view[:end])
        self.on_message_complete()
        if self._phase is not _DEAF:
            self._parse(view[end:])

    def _may_send(self, size_bytes: int) -> bool:
        """Whether a body that is more than small may come; the request is refused if not.

        `size_bytes` is what its head tells, 0 where it tells nothing.
        """
        error = self.host.application.may_send(self._headers, self._peer)
        if error is not None:
            self._refuse(error)
            return False
        if self.host.buffered_bytes + size_bytes > self.host.limits.max_buffered_bytes:
            self._refuse_for_room()
            return False
        self._pieces = Pieces()
        self._length = size_bytes
        return True

    def _is_upload(self) -> bool:
        return self.host.application.is_upload(self._method, self._target)

    def _continue(self) -> None:
        if self._expects_continue():
            self._transport.write(_CONTINUE)

    def _expects_continue(self) -> bool:
        expectation = self._headers[b"expect"].lower()
        return expectation == b"100-continue" and self._parser.get_http_version() == "1.1"

    def _bound_read(self, size_bytes: int, *, went_on: bool) -> None:
        """Bound what a request that is not whole may hold.

        `went_on` tells that the last read began and ended in the same request and had none of
        its body: what llhttp keeps of a header or trailer is only seen when that is whole.
        """
        self._head_read = self._head_read + size_bytes if went_on else 0
        if self._phase is _DEAF:
            return
        if self._head_read > self.host.limits.max_head_bytes:
            self._refuse_head()
        if len(self._body) > _MAX_SMALL_PIECES:
            self._pieces = Pieces()
            self._pieces.add(b"".join(self._body))
            self._body = []

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if self._phase is _DEAF:  # refused inside a callback
            return
        if self._phase is _IDLE and not self._keep_alive:
            self._phase = _DEAF  # bytes after the last request are nobody's
            return
        cause = error.__context__
        if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
            self._end(self.host.application.failed(self._target, self._headers, cause))
        else:
            self._refuse(MalformedHttp(f"malformed HTTP request: {error}"))

    def _refuse_head(self) -> None:
        limit = self.host.limits.max_head_bytes
        msg = (
            f"request line and headers are over the limit of {limit} bytes "
            f"and {_MAX_HEADERS} headers"
        )
        self._refuse(HeadTooLarge(msg))

    def _refuse_body(self) -> None:
        limit = self.host.limits.max_body_bytes
        self._refuse(PayloadTooLarge(f"request body is over the limit of {limit} bytes"))

    def _refuse_for_room(self) -> None:
        limit = self.host.limits.max_buffered_bytes
        msg = f"the bodies of all requests under way are at the limit of {limit} bytes"
        self._refuse(Overloaded(msg, retry_after_s=_RETRY_AFTER_S))

    def _refuse_coding(self) -> None:
        codings = self._headers[b"transfer-encoding"].lower().split(b",")
        if codings[-1].strip() == b"chunked":  # its end is known, only not what it means
            self._refuse(Unsupported("Transfer-Encoding: only chunked is supported"))
        else:
            msg = "malformed HTTP request: Transfer-Encoding must end in chunked"
            self._refuse(MalformedHttp(msg))

    def _refuse(self, error: HeadraceError) -> None:
        self._end(self.host.application.refuse(self._target, self._headers, error))

    def _end(self, response: HttpResponse) -> None:
        """Answer at once what is being read, and read no more."""
        self._phase = _DEAF
        self._let_go()
        self.host.count_refusal(response.status)
        waiting, self._input = self._input, None
        if waiting is not None:  # an ASGI exchange waits for a body that will not come
            if waiting.started:
                self.abort()  # half an answer is out: another one would be read as part of it
                return
            waiting.cancel()
            if self._active is waiting:
                self._active = None
            else:
                self._pending.remove(waiting)
        self._enqueue(Refusal(self, response))

    def _enqueue(self, exchange: Exchange) -> None:
        if self._active is None and not (self._pending or self._write_paused):
            self._active = exchange
            exchange.start()
            return
        self._pending.append(exchange)
        self.pause_reading()

    def _let_go(self) -> None:
        """Forget what was read of a body that no handler is to see."""
        self._body = []
        self._pieces = None
        self._length = self._bytes_left = 0
        self.host.buffered_bytes -= self._held_bytes
        self._held_bytes = 0

    def _drop_pending(self) -> None:
        while self._pending:
            self._pending.popleft().cancel()

    def _pump(self) -> None:
        if self._pumping:  # an exchange that was answered at once: the loop below goes on
            return
        self._pumping = True
        while self._active is None and self._pending and not (self._write_paused or self.lost):
            self._active = exchange = self._pending.popleft()
            exchange.start()
        self._pumping = False
