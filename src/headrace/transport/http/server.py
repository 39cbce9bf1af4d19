"""The HTTP server's life: listen, sweep, drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from headrace.domain.errors import InvalidSettings
from headrace.transport.http.connection import Connection
from headrace.transport.http.host import Application, Host
from headrace.transport.http.limits import HttpLimits

_SWEEP_S: Final = 0.25
_BACKLOG: Final = 2048
_POLL_S: Final = 0.01


class HttpServer:
    """Serves one application on one address until drained."""

    def __init__(self, host: Host, listener: asyncio.Server, address: tuple[str, int]) -> None:
        self._host = host
        self._listener = listener
        self.address = address  # as bound: the port is the real one where 0 was asked for

    @classmethod
    async def listen(
        cls,
        application: Application,
        *,
        address: tuple[str, int],
        limits: HttpLimits,
        tasks: asyncio.TaskGroup,
    ) -> HttpServer:
        """Bind and accept at once.

        Raises:
            InvalidSettings: the address is taken, not ours, or not to be had.
        """
        loop = asyncio.get_running_loop()
        host = Host(application=application, limits=limits, loop=loop, tasks=tasks)
        sock = bind(address)
        listener = await loop.create_server(lambda: Connection(host), sock=sock, backlog=_BACKLOG)
        name = sock.getsockname()
        server = cls(host, listener, (name[0], name[1]))
        loop.call_later(_SWEEP_S, server._sweep)
        return server

    @property
    def open_connections(self) -> int:
        """Connections at this moment."""
        return len(self._host.connections)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of bodies that inference requests under way hold at this moment."""
        return self._host.buffered_bytes

    @property
    def refusals(self) -> dict[int, int]:
        """Requests that the HTTP layer refused by itself, by status, since the start."""
        return dict(self._host.refusals)

    def send_away(self) -> None:
        """Serve on, but have every answer close its connection, so that clients go elsewhere."""
        self._host.draining = True

    async def drain(self, grace_s: float) -> bool:
        """Answer what is under way, then close; idle connections close at once.

        New connections are still taken, so that probes see the server not ready, until the last
        exchange is done. Whoever is not done after `grace_s` seconds is cut off; False then.
        """
        self.send_away()
        host = self._host
        deadline = host.loop.time() + grace_s
        for connection in list(host.connections):
            connection.close_if_idle()
        while host.busy and host.loop.time() < deadline:  # noqa: ASYNC110 - no one event
            await asyncio.sleep(_POLL_S)
        self._listener.close()
        late = host.busy
        for connection in late:
            connection.cancel()
        if late:
            await asyncio.sleep(0.05)  # the cancelled answer 503 in this time
        for connection in list(host.connections):
            connection.abort()
        return not late

    def _sweep(self) -> None:
        host = self._host
        host.tick()
        if self._listener.is_serving() or host.connections:
            host.loop.call_later(_SWEEP_S, self._sweep)
        for connection in [c for c in host.connections if c.deadline < host.now]:
            connection.expire()
        host.tidy()


def bind(address: tuple[str, int]) -> socket.socket:
    """A listening-ready TCP socket.

    Raises:
        InvalidSettings: with the address and the system's reason.
    """
    name, port = address
    with contextlib.ExitStack() as undo:
        try:
            family = socket.AF_INET6 if ":" in name else socket.AF_INET
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except (OSError, ValueError) as error:  # ValueError: no host name at all
            msg = f"cannot listen on {name}:{port}: {getattr(error, 'strerror', None) or error}"
            raise InvalidSettings(msg) from error
        undo.pop_all()
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return sock
