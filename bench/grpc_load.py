"""A closed-loop load generator that speaks gRPC: so many requests at a time on one connection.

Runs as its own process (`python -m bench.grpc_load`) at protocol level: a client of grpcio takes
more time for a request than most of the servers, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final, cast

import uvloop

from bench import child, grpc_frames
from bench.failure import BenchFailure
from bench.grpc_frames import HEAD_BYTES
from bench.load import LoadOutcome, LoadTask, Phase, count

_SHOWN: Final = 300
_REFILL_BYTES: Final = 1 << 30


class _Connection(asyncio.Protocol):
    """One connection. Messages are not looked at, but the status at an answer's end is."""

    def __init__(self, request: bytes) -> None:
        self._template = grpc_frames.Template(request)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._next = 1  # a client's streams have odd numbers
        self._under_way: dict[int, _Lane] = {}
        self._waiting: deque[_Lane] = deque()  # until the server takes more
        self._window_bytes = grpc_frames.WINDOW_BYTES
        self._taken_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as such
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(grpc_frames.opening())

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._fail("the server closed the connection instead of answering")

    def close(self) -> None:
        self._under_way.clear()
        if self._transport is not None:
            self._transport.close()

    def send(self, lane: _Lane) -> None:
        if self._transport is None:
            lane.fail("the server closed a connection that was idle")
        elif self._window_bytes < self._template.window_bytes:
            self._waiting.append(lane)
        else:
            self._window_bytes -= self._template.window_bytes
            self._under_way[self._next] = lane
            self._transport.write(self._template.numbered(self._next))
            self._next += 2

    def data_received(self, data: bytes) -> None:
        self._received += data
        received = bytes(self._received)
        at = 0
        while len(received) - at >= HEAD_BYTES:
            end = at + HEAD_BYTES + int.from_bytes(received[at : at + 3])
            if end > len(received):
                break
            number = int.from_bytes(received[at + 5 : at + HEAD_BYTES])
            payload = received[at + HEAD_BYTES : end]
            self._take(received[at + 3], received[at + 4], number, payload)
            at = end
        del self._received[:at]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == grpc_frames.HEADERS:
            if flags & grpc_frames.END_STREAM:
                self._end(number, payload)
        elif kind == grpc_frames.DATA:
            self._taken_bytes += len(payload)
            if self._taken_bytes >= _REFILL_BYTES:
                self._write(grpc_frames.window_update(0, self._taken_bytes))
                self._taken_bytes = 0
        elif kind == grpc_frames.WINDOW_UPDATE:
            if not number:
                self._window_bytes += int.from_bytes(payload)
                for _ in range(len(self._waiting)):
                    self.send(self._waiting.popleft())
        elif kind in {grpc_frames.SETTINGS, grpc_frames.PING}:
            if not flags & grpc_frames.ACK:
                echo = payload if kind == grpc_frames.PING else b""
                self._write(grpc_frames.frame(kind, grpc_frames.ACK, 0, echo))
        elif kind == grpc_frames.GOAWAY or number in self._under_way:
            self._fail(f"the server broke off, by a frame of type {kind}: {payload[:_SHOWN]!r}")

    def _end(self, number: int, block: bytes) -> None:
        lane = self._under_way.pop(number, None)
        if lane is None:
            return
        if grpc_frames.is_success(block):
            lane.answered()
        else:
            lane.fail(f"an answer was no success: {block[-_SHOWN:]!r}")

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def _fail(self, reason: str) -> None:
        for lane in self._under_way.values():
            lane.fail(reason)
        self._under_way.clear()


class _Lane:
    """See load.Lane."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._phase: Phase | None = None
        self._sent = 0.0

    def begin(self, phase: Phase) -> None:
        self._phase = phase
        self._sent = time.perf_counter()
        self._connection.send(self)

    def answered(self) -> None:
        assert self._phase is not None
        sent = self._phase.answered(self._sent)
        if sent is not None:
            self._sent = sent
            self._connection.send(self)

    def fail(self, reason: str) -> None:
        if self._phase is not None:
            self._phase.fail(reason)

    def close(self) -> None:
        self._connection.close()


async def measure(task: LoadTask) -> LoadOutcome:
    """As load.measure; `connections` requests are under way at a time.

    Raises:
        BenchFailure: an answer that is no success, a closed connection, no answer for a long time.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: _Connection(task.request), "127.0.0.1", task.port
    )
    return await count(task, [_Lane(connection) for _ in range(task.connections)])


if __name__ == "__main__":
    try:
        child.answer(uvloop.run(measure(child.task(LoadTask))))
    except (BenchFailure, OSError) as failure:
        child.refuse(str(failure))
