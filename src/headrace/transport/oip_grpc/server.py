"""Serves handlers by grpc.aio. Nothing else knows that library, so that another can follow."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote

# child processes are started while it runs, which it would comment on in the log, each time
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# it would write lines of its own form about each connection that ends; errors are told by statuses
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

from headrace.domain.errors import InvalidSettings, ShuttingDown
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.server import bind
from headrace.transport.oip_grpc.messages import (
    GrpcAnswer,
    GrpcRequest,
    GrpcStream,
    Handler,
    StreamHandler,
)
from headrace.transport.status import GrpcStatus, grpc_status

#: How answers are compressed, where the client takes that; else by what it does take, or not.
Compression: TypeAlias = Literal["none", "gzip", "deflate"]

# A level, since the library compares that with what the client takes, which it does not do with
# an algorithm: its lowest level prefers gzip, its highest deflate.
_LEVELS: Final[Mapping[Compression, int]] = {"none": 0, "gzip": 1, "deflate": 3}
# The library hands out one request in each turn of the event loop; the others wait in its queue. A
# burst that the loop takes a second for is beyond its own bounds of that queue, and the requests
# that it ends then come back as CANCELLED, for which clients blame themselves. A request that waits
# there takes about 4 KB.
_MAX_STREAMS: Final = 1024  # of a connection; a client that has more keeps the others waiting
_PENDING: Final = 32 * 1024  # of all connections; beyond it some are ended
_MAX_PENDING: Final = 64 * 1024  # beyond it all are
#: How long a stream on which nothing is under way has for its client's end, when it shall end.
_LAST_WORD_S: Final = 0.1
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """Serves one set of handlers on one address until drained."""

    def __init__(self, server: Any, methods: _Methods, address: tuple[str, int]) -> None:
        self._server = server
        self._methods = methods
        self.address = address  # as bound: the port is the real one where 0 was asked for

    @classmethod
    async def listen(
        cls,
        handlers: Mapping[str, Handler],
        streams: Mapping[str, StreamHandler],
        *,
        address: tuple[str, int],
        limits: HttpLimits,
        compression: Compression = "none",
    ) -> GrpcServer:
        """Bind and accept at once; handlers are by path, "/package.Service/Method".

        Raises:
            InvalidSettings: the address is taken, not ours, or not to be had.
        """
        methods = _Methods(handlers, streams)
        server = grpc.aio.server(
            handlers=[methods],
            options=[
                ("grpc.max_receive_message_length", limits.max_body_bytes),  # also decompressed
                ("grpc.max_metadata_size", limits.max_head_bytes),
                ("grpc.absolute_max_metadata_size", limits.max_head_bytes),
                ("grpc.default_compression_level", _LEVELS[compression]),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.server.max_pending_requests", _PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
                ("grpc.so_reuseport", 0),  # else a second server would share the port unnoticed
            ],
        )
        # the library logs why it cannot listen, and does not tell
        with bind(address) as probe:
            host = probe.getsockname()[0]
        shown = f"[{host}]" if ":" in host else host
        try:
            port = server.add_insecure_port(f"{shown}:{address[1]}")
        except RuntimeError as error:
            msg = f"cannot listen on {host}:{address[1]}"
            raise InvalidSettings(msg) from error
        await server.start()
        return cls(server, methods, (host, port))

    async def drain(self, grace_s: float) -> bool:
        """Refuse what is new, answer what is under way, then close; idle streams end soon.

        Whoever is not done after `grace_s` seconds is cut off; False then.
        """
        loop = asyncio.get_running_loop()
        cut_off = 0

        def look() -> None:
            nonlocal cut_off
            cut_off = self._methods.under_way

        timer = loop.call_later(grace_s, look)
        self._methods.drain()
        await self._server.stop(grace_s)
        timer.cancel()
        return not cut_off


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library ships no types
    """The table that the library asks for each request."""

    def __init__(
        self, handlers: Mapping[str, Handler], streams: Mapping[str, StreamHandler]
    ) -> None:
        self._unary = 0
        self._streams: set[_Stream] = set()
        self._draining = False
        # without (de)serialisers messages stay bytes: a malformed one is then ours to answer
        self._table = {
            path: grpc.unary_unary_rpc_method_handler(partial(self._serve, handler))
            for path, handler in handlers.items()
        }
        self._table |= {
            path: grpc.stream_stream_rpc_method_handler(partial(self._serve_stream, handler))
            for path, handler in streams.items()
        }

    @property
    def under_way(self) -> int:
        """Requests that their handlers have not answered."""
        return self._unary + sum(stream.under_way for stream in self._streams)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a path; None is answered UNIMPLEMENTED."""
        return self._table.get(handler_call_details.method)

    def drain(self) -> None:
        """End each stream as soon as nothing is under way on it."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def _serve(self, handler: Handler, message: bytes, context: Any) -> bytes:
        self._unary += 1
        try:
            answer = await handler(
                GrpcRequest(
                    _headers(context.invocation_metadata()),
                    message,
                    _timeout_s(context),
                    _address(context.peer()),
                )
            )
        finally:
            self._unary -= 1
        _conclude(context, answer)
        return answer.message

    async def _serve_stream(self, handler: StreamHandler, _: Any, context: Any) -> None:
        stream = _Stream(context)
        self._streams.add(stream)
        if self._draining:
            stream.drain()
        try:
            answer = await stream.serve(handler)
        finally:
            self._streams.discard(stream)
        _conclude(context, answer)


class _Stream:
    """One streaming request, in the library's terms."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._task = asyncio.current_task()
        self._writing = asyncio.Lock()  # the library takes one message at a time
        self._draining = False
        self._ended = False
        self._half_closed = False
        self._waited = False
        self._last_word: asyncio.TimerHandle | None = None
        self._stream = GrpcStream(
            _headers(context.invocation_metadata()),
            self._messages(),
            self._send,
            timeout_s=_timeout_s(context),
            peer=_address(context.peer()),
            on_idle=self._look,
        )

    @property
    def under_way(self) -> int:
        return self._stream.under_way

    def drain(self) -> None:
        self._draining = True
        self._look()

    async def serve(self, handler: StreamHandler) -> GrpcAnswer:
        try:
            return await handler(self._stream)
        except asyncio.CancelledError:
            task = self._task
            # the client may have gone in the same moment, and then nobody reads a status
            if not self._ended or task is None or task.uncancel():
                raise
            error = ShuttingDown("this server is shutting down: open a new stream")
            return GrpcAnswer(
                status=grpc_status(error),
                details=error.message,
                trailers=(("x-error-code", error.code),),
            )
        finally:
            if self._last_word is not None:
                self._last_word.cancel()

    def _look(self) -> None:
        """Give a client whose requests are all answered the time to say that it has no more."""
        if not self._draining or self._stream.under_way:
            return
        if self._last_word is None:
            loop = asyncio.get_running_loop()
            self._last_word = loop.call_later(_LAST_WORD_S, self._end)
        elif self._waited:  # once: whoever asks one thing after another is to stop
            self._end()

    def _end(self) -> None:
        self._waited = True
        # of a client that has said so, the handler returns by itself
        if not self._half_closed and not self._ended and not self._stream.under_way:
            self._ended = True
            if self._task is not None:
                self._task.cancel()

    async def _messages(self) -> AsyncIterator[bytes]:
        with _gone():
            while (message := await self._context.read()) is not grpc.aio.EOF:
                yield message
            self._half_closed = True

    async def _send(self, message: bytes) -> None:
        async with self._writing:
            with _gone():
                await self._context.write(message)


@contextmanager
def _gone() -> Iterator[None]:
    """Tell in one way that the client has gone, of which the task may hear a little later."""
    try:
        yield
    except grpc.aio.BaseError as error:
        raise asyncio.CancelledError from error


def _timeout_s(context: Any) -> float:
    left_s: float | None = context.time_remaining()
    return math.inf if left_s is None else left_s


def _conclude(context: Any, answer: GrpcAnswer) -> None:
    context.set_trailing_metadata(answer.trailers)
    if answer.status is not GrpcStatus.OK:
        context.set_code(_CODES[answer.status])
        context.set_details(answer.details)


def _headers(metadata: Sequence[tuple[str, str | bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for key, text in metadata:
        name = key.encode()
        value = text.encode() if isinstance(text, str) else text
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _address(peer: str) -> str:
    """The IP address in what the library calls a peer: `ipv4:127.0.0.1:50` or `ipv6:%5B::1%5D:50`.

    "" of any other, as of a Unix socket.
    """
    family, _, rest = peer.partition(":")
    if family not in {"ipv4", "ipv6"}:
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")
