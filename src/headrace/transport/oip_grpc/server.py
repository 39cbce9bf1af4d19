"""Serves handlers by grpc.aio. Nothing else knows that library, so that another can follow."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

# child processes are started while it runs, which it would comment on in the log, each time
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# it would write lines of its own form about each connection that ends; errors are told by statuses
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

from headrace.domain.errors import InvalidSettings
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.server import bind
from headrace.transport.oip_grpc.messages import GrpcRequest, Handler
from headrace.transport.status import GrpcStatus

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """Serves one set of handlers on one address until drained."""

    def __init__(self, server: Any, methods: _Methods, address: tuple[str, int]) -> None:
        self._server = server
        self._methods = methods
        self.address = address  # as bound: the port is the real one where 0 was asked for

    @classmethod
    async def listen(
        cls, handlers: Mapping[str, Handler], *, address: tuple[str, int], limits: HttpLimits
    ) -> GrpcServer:
        """Bind and accept at once; `handlers` are by path, "/package.Service/Method".

        Raises:
            InvalidSettings: the address is taken, not ours, or not to be had.
        """
        methods = _Methods(handlers)
        server = grpc.aio.server(
            handlers=[methods],
            options=[
                ("grpc.max_receive_message_length", limits.max_body_bytes),  # also decompressed
                ("grpc.max_metadata_size", limits.max_head_bytes),
                ("grpc.absolute_max_metadata_size", limits.max_head_bytes),
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
        """Refuse what is new, answer what is under way, then close.

        Whoever is not done after `grace_s` seconds is cut off; False then.
        """
        loop = asyncio.get_running_loop()
        cut_off = 0

        def look() -> None:
            nonlocal cut_off
            cut_off = self._methods.under_way

        timer = loop.call_later(grace_s, look)
        await self._server.stop(grace_s)
        timer.cancel()
        return not cut_off


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library ships no types
    """The table that the library asks for each request."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.under_way = 0  # requests that their handlers have not answered
        # without (de)serialisers messages stay bytes: a malformed one is then ours to answer
        self._table = {
            path: grpc.unary_unary_rpc_method_handler(partial(self._serve, handler))
            for path, handler in handlers.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a path; None is answered UNIMPLEMENTED."""
        return self._table.get(handler_call_details.method)

    async def _serve(self, handler: Handler, message: bytes, context: Any) -> bytes:
        self.under_way += 1
        try:
            left_s = context.time_remaining()
            answer = await handler(
                GrpcRequest(
                    _headers(context.invocation_metadata()),
                    message,
                    math.inf if left_s is None else left_s,
                    _address(context.peer()),
                )
            )
        finally:
            self.under_way -= 1
        context.set_trailing_metadata(answer.trailers)
        if answer.status is not GrpcStatus.OK:
            context.set_code(_CODES[answer.status])
            context.set_details(answer.details)
        return answer.message


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
