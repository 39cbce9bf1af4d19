"""A closed-loop load generator: every connection sends its next request when it has its answer.

Runs as its own process (`python -m bench.load`) at protocol level, so that one core of it is
enough to keep one core of a server busy. This one speaks HTTP/1.1; see grpc_load.py too.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from collections.abc import Sequence
from typing import Protocol, cast

import httptools
import msgspec
import uvloop

from bench import child, usage
from bench.failure import BenchFailure

_OK = 200
_START_S = 120.0  # of the process, on a busy machine
_PATIENCE_S = 30.0  # beyond the phase's own length
_SHOWN = 300
_READ_BYTES = 1 << 18


class LoadTask(msgspec.Struct, frozen=True):
    """What to send where, and for how long. Only what follows the warm-up is counted."""

    port: int
    request: bytes  # as it is sent
    connections: int
    warm_up_s: float
    seconds: float
    server_pid: int  # whose processor time is counted, with its descendants
    behind_pid: int | None = None  # of what the server asks in its turn: counted apart


class LoadOutcome(msgspec.Struct, frozen=True):
    """What one run gave; every counted request was a success."""

    requests: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_s: float
    load_cpu_s: float
    behind_cpu_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """What a report shows of it; processor time is the server's."""
        return {
            "cpu_us": self.server_cpu_s * 1e6 / self.requests,
            "per_s": self.requests / self.elapsed_s,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "busy": self.server_cpu_s / self.elapsed_s,
        }


def put_on(task: LoadTask, *, on: frozenset[int], program: str = "bench.load") -> LoadOutcome:
    """Run a load generator on the given cores.

    Raises:
        BenchFailure: see `measure`.
    """
    timeout_s = task.seconds * 2 + _START_S
    return child.run(program, task, LoadOutcome, on=on, timeout_s=timeout_s)


class Phase:
    """A stretch of time in which every connection sends until it is over."""

    def __init__(self, request: bytes, connections: int, seconds: float) -> None:
        self.request = request
        self.latencies_s = array("d")
        self.began = time.perf_counter()
        self.until = self.began + seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = connections

    def answered(self, sent: float) -> float | None:
        """Count a request by when it was sent; when the next one is, or None where all is over."""
        now = time.perf_counter()
        self.latencies_s.append(now - sent)
        if now < self.until:
            return now
        self._running -= 1
        if not self._running and not self.done.done():
            self.done.set_result(None)
        return None

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchFailure(reason))


class Lane(Protocol):
    """What sends one request at a time."""

    def begin(self, phase: Phase) -> None:
        """Send the first request of a phase."""

    def close(self) -> None:
        """Send no more."""


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, buffer: memoryview) -> None:
        # HttpResponseParser calls on_message_complete; bodies are not looked at
        self._parser = httptools.HttpResponseParser(self)
        # all connections read into the same one: what is read is parsed before anything else is
        # read, and a large answer needs no memory of its own
        self._buffer = buffer
        self._received_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._phase: Phase | None = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as such
        self._transport = cast("asyncio.Transport", transport)

    def begin(self, phase: Phase) -> None:
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
        if self._parser.get_status_code() != _OK:
            status = self._parser.get_status_code()
            phase.fail(f"an answer was {status}, not 200: {self._shown()!r}")
            return
        sent = phase.answered(self._sent)
        if sent is None:
            self._phase = None
        else:
            self._sent = sent
            self._transport.write(phase.request)

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
    return await count(task, connections)


async def count(task: LoadTask, lanes: Sequence[Lane]) -> LoadOutcome:
    """Warm up, then count what these lanes send.

    Raises:
        BenchFailure: a request failed, or was not answered for a long time.
    """
    await _run(task, lanes, task.warm_up_s)
    gc.collect()
    gc.freeze()
    gc.disable()
    before_s = _used_s(task)
    phase = await _run(task, lanes, task.seconds)
    elapsed_s = time.perf_counter() - phase.began
    after_s = _used_s(task)
    for lane in lanes:
        lane.close()
    load_s, server_s, behind_s = (
        after - before for before, after in zip(before_s, after_s, strict=True)
    )
    latencies_s = sorted(phase.latencies_s)
    return LoadOutcome(
        requests=len(latencies_s),
        elapsed_s=elapsed_s,
        p50_ms=latencies_s[len(latencies_s) // 2] * 1000,
        p99_ms=latencies_s[len(latencies_s) * 99 // 100] * 1000,
        server_cpu_s=server_s,
        load_cpu_s=load_s,
        behind_cpu_s=behind_s,
    )


def _used_s(task: LoadTask) -> tuple[float, float, float]:
    """Processor time so far: this process's, the server's, and that of what is behind it."""
    behind_s = 0.0 if task.behind_pid is None else usage.cpu_s(task.behind_pid)
    return time.process_time(), usage.cpu_s(task.server_pid), behind_s


async def _run(task: LoadTask, lanes: Sequence[Lane], seconds: float) -> Phase:
    phase = Phase(task.request, len(lanes), seconds)
    for lane in lanes:
        lane.begin(phase)
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
