"""A TCP proxy before a server whose answers it spoils on the way, at any byte it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

_CHUNK_BYTES: Final = 65_536
_PATIENCE_S: Final = 20.0
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset
_LENGTH: Final = re.compile(rb"(?<=content-length: )\d+", re.IGNORECASE)


class Pass(msgspec.Struct, frozen=True):
    """As it came."""


class Drip(msgspec.Struct, frozen=True):
    """An answer's bytes one by one, so many a second."""

    bytes_per_s: float = 1.0


class Garble(msgspec.Struct, frozen=True):
    """Every byte of an answer becomes another."""


class Length(msgspec.Struct, frozen=True):
    """An HTTP answer says that it has so many bytes more than it has."""

    by: int


class Truncate(msgspec.Struct, frozen=True):
    """The connection ends in good order after so many bytes of an answer."""

    after: int


class Reset(msgspec.Struct, frozen=True):
    """The connection is reset after so many bytes of an answer."""

    after: int = 0


class Refuse(msgspec.Struct, frozen=True):
    """New connections are reset as soon as they are made."""


Fault: TypeAlias = Pass | Drip | Garble | Length | Truncate | Reset | Refuse

PASS: Final = Pass()


class TcpProxy:
    """`fault` may be set at any time; it counts for what is answered from then on.

    Bytes are counted on each connection from the moment at which the fault was set, or from the
    connection's beginning where that is later.
    """

    def __init__(self, behind: tuple[str, int]) -> None:
        self.fault: Fault = PASS
        self.accepted = 0  # connections since the beginning
        self.port = 0
        self._behind = behind
        self._open: set[asyncio.StreamWriter] = set()
        self._spoilt: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    @property
    def spoilt(self) -> int:
        """Open connections on which something else went out than came in."""
        return len(self._spoilt)

    def cut(self) -> None:
        """Reset all connections that are open."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(_PATIENCE_S)

    def run(self, ready: threading.Event, *, host: str, port: int) -> None:
        """Serve until `end`, in a thread of its own."""
        self._loop.run_until_complete(self._serve(ready, host, port))
        self._loop.close()

    def end(self) -> None:
        """Let `run` return."""
        self._loop.call_soon_threadsafe(self._over.set)

    async def _serve(self, ready: threading.Event, host: str, port: int) -> None:
        server = await asyncio.start_server(self._accept, host, port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over.wait()
        server.close()
        # what was accepted just before still begins
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await self._cut()
            await asyncio.wait(others)

    async def _cut(self) -> None:
        for client in [*self._open]:
            _reset(client)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if isinstance(self.fault, Refuse) or self._over.is_set():
            _reset(writer)
            return
        try:
            behind, onward = await asyncio.open_connection(*self._behind)
        except OSError:
            _reset(writer)
            return
        if self._over.is_set():
            _reset(onward)
            _reset(writer)
            return
        self._open.add(writer)
        asking = asyncio.ensure_future(_copy(reader, onward))
        answering = asyncio.ensure_future(self._answer(behind, writer))
        try:
            # whichever side ends first, the other learns of it
            await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asking, answering):
                task.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            self._open.discard(writer)
            self._spoilt.discard(writer)
            onward.transport.abort()
            writer.close()

    async def _answer(self, behind: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault, passed = self.fault, 0
        with contextlib.suppress(ConnectionError):
            while data := await behind.read(_CHUNK_BYTES):
                if self.fault is not fault:
                    fault, passed = self.fault, 0
                if not isinstance(fault, Pass):
                    self._spoilt.add(writer)
                left = fault.after - passed if isinstance(fault, (Truncate, Reset)) else len(data)
                await self._write(fault, data[:left], writer)
                passed += len(data)
                if len(data) > left or left == 0:
                    if isinstance(fault, Reset):
                        _reset(writer)
                    return

    async def _write(self, fault: Fault, data: bytes, writer: asyncio.StreamWriter) -> None:
        match fault:
            case Garble():
                data = bytes(byte ^ 0x5A for byte in data)
            case Length(by):
                data = _LENGTH.sub(lambda found: b"%d" % (int(found[0]) + by), data)
            case Drip(bytes_per_s):
                for byte in data:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1 / bytes_per_s)
                return
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def tcp_proxy(port: int, *, host: str = "127.0.0.1", own_port: int = 0) -> Iterator[TcpProxy]:
    """Listen before a port of this machine until the block ends."""
    proxy, ready = TcpProxy(("127.0.0.1", port)), threading.Event()
    run = {"host": host, "port": own_port}
    thread = threading.Thread(target=proxy.run, args=(ready,), kwargs=run, name="proxy")
    thread.start()
    try:
        assert ready.wait(_PATIENCE_S)
        yield proxy
    finally:
        proxy.end()
        thread.join(_PATIENCE_S)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    own = writer.get_extra_info("socket")
    if own is not None and own.fileno() >= 0:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
