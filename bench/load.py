"""A closed-loop load generator: every connection sends its next request when it has its answer.

Runs as its own process (`python -m bench.load`) at protocol level, so that one core of it is
enough to keep one core of a server busy.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from typing import cast

import httptools
import msgspec
import uvloop

from bench import child, usage
from bench.failure import BenchFailure

_OK = 200
_PATIENCE_S = 30.0  # beyond the phase's own length
_SHOWN = 300
_READ_BYTES = 1 << 18


class LoadTask(msgspec.Struct, frozen=True):
    """What to send where, and for how long. Only what follows the warm-up is counted."""

    port: int
    request: bytes  # head and body
    connections: int
    warm_up_s: float
    seconds: float
    server_pid: int  # whose processor time is counted, with its descendants


class LoadOutcome(msgspec.Struct, frozen=True):
    """What one run gave; every counted request was answered with 200."""

    requests: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_s: float
    load_cpu_s: float


class _Phase:
    """A stretch of time in which every connection sends until it is over."""

    def __init__(self, request: bytes, connections: int, seconds: float) -> None:
        self.request = request
        self.latencies_s = array("d")
        self.began = time.perf_counter()
        self.until = self.began + seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = connections

    def one_ended(self) -> None:
        self._running -= 1
        if not self._running and not self.done.done():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchFailure(reason))


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, buffer: memoryview) -> None:
        # HttpResponseParser calls on_message_complete; bodies are not looked at
        self._parser = httptools.HttpResponseParser(self)
        # all connections read into the same one: what is read is parsed before anything else is
        # read, and a large answer needs no memory of its own
        self._buffer = buffer
        self._received_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._phase: _Phase | None = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as such
        self._transport = cast("asyncio.Transport", transport)

    def begin(self, phase: _Phase) -> None:
        if self._transport is None:
            phase.fail("the server closed a connection that was idle")
            return
        self._phase = phase
        self._sent = time.perf_counter()
        self._transport.write(phase.request)

    def close(self) -> None:
        self._phase = None
        if self._transport is not None:
            self._transport.close()

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        self._received_bytes = size
        try:
            self._parser.feed_data(self._buffer[:size])
        except httptools.HttpParserError as error:
            if self._phase is not None:
                self._phase.fail(f"the answer is not HTTP: {error}: {self._shown()!r}")

    def on_message_complete(self) -> None:
        phase = self._phase
        if phase is None or self._transport is None:
            return
        now = time.perf_counter()
        if self._parser.get_status_code() != _OK:
            status = self._parser.get_status_code()
            phase.fail(f"an answer was {status}, not 200: {self._shown()!r}")
            return
        phase.latencies_s.append(now - self._sent)
        if now < phase.until:
            self._sent = now
            self._transport.write(phase.request)
        else:
            self._phase = None
            phase.one_ended()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._phase is not None:
            self._phase.fail("the server closed a connection instead of answering")

    def _shown(self) -> bytes:
        """The end of what was read last."""
        return bytes(self._buffer[: self._received_bytes][-_SHOWN:])


async def measure(task: LoadTask) -> LoadOutcome:
    """Warm up, then count.

    Raises:
        BenchFailure: an answer other than 200, a closed connection, no answer for a long time.
    """
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_READ_BYTES))
    connections = []
    for _ in range(task.connections):
        _, connection = await loop.create_connection(
            lambda: _Connection(buffer), "127.0.0.1", task.port
        )
        connections.append(connection)
    await _run(task, connections, task.warm_up_s)
    gc.collect()
    gc.freeze()
    gc.disable()
    load_before, server_before = time.process_time(), usage.cpu_s(task.server_pid)
    phase = await _run(task, connections, task.seconds)
    elapsed_s = time.perf_counter() - phase.began
    load_after, server_after = time.process_time(), usage.cpu_s(task.server_pid)
    for connection in connections:
        connection.close()
    latencies_s = sorted(phase.latencies_s)
    return LoadOutcome(
        requests=len(latencies_s),
        elapsed_s=elapsed_s,
        p50_ms=latencies_s[len(latencies_s) // 2] * 1000,
        p99_ms=latencies_s[len(latencies_s) * 99 // 100] * 1000,
        server_cpu_s=server_after - server_before,
        load_cpu_s=load_after - load_before,
    )


async def _run(task: LoadTask, connections: list[_Connection], seconds: float) -> _Phase:
    phase = _Phase(task.request, len(connections), seconds)
    for connection in connections:
        connection.begin(phase)
    try:
        async with asyncio.timeout(seconds + _PATIENCE_S):
            await phase.done
    except TimeoutError:
        msg = f"a request was not answered within {_PATIENCE_S:.0f} s"
        raise BenchFailure(msg) from None
    return phase


if __name__ == "__main__":
    try:
        child.answer(uvloop.run(measure(child.task(LoadTask))))
    except (BenchFailure, OSError) as failure:
        child.refuse(str(failure))
