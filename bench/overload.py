"""An open-loop load generator: requests come when they are due, whatever became of those before.

Runs as its own process (`python -m bench.overload`). What clients that do not wait for each other
do to a server which cannot keep up.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from typing import Final, cast

import httptools
import msgspec
import uvloop

from bench import child

_OK: Final = 200
_REFUSED: Final = frozenset({429, 503})
_LATE: Final = 504
_PATIENCE_S: Final = 30.0


class OverloadTask(msgspec.Struct, frozen=True):
    """What to send where, how often and for how long."""

    port: int
    request: bytes  # head and body
    per_s: float
    seconds: float


class OverloadOutcome(msgspec.Struct, frozen=True):
    """What became of the requests: `good_per_s` were answered 200 while others still came in."""

    sent: int
    good_per_s: float
    good_p99_ms: float
    refused: int  # 429 and 503
    refused_p99_ms: float  # nan where none was
    late: int  # 504
    other: int


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        # from when it was due, so that no delay of the generator flatters the server
        self._load.answered(status, time.perf_counter() - self._due)
        if self._parser.should_keep_alive() and self._transport is not None:
            self._load.idle.append(self)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None


class _Load:
    def __init__(self, task: OverloadTask) -> None:
        self._task = task
        self.idle: deque[_Connection] = deque()
        self.statuses: Counter[int] = Counter()
        self.until = math.inf  # what is answered later is not of the overload any more
        self.good = 0
        self.good_s: list[float] = []
        self.refused_s: list[float] = []
        self.under_way = 0

    def answered(self, status: int, seconds: float) -> None:
        self.under_way -= 1
        self.statuses[status] += 1
        if status == _OK:
            self.good_s.append(seconds)
            self.good += time.perf_counter() < self.until
        elif status in _REFUSED:
            self.refused_s.append(seconds)

    async def one(self, due: float) -> None:
        self.under_way += 1
        if self.idle:
            connection = self.idle.pop()
        else:
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), "127.0.0.1", self._task.port
                )
            except OSError:
                self.under_way -= 1
                return
        connection.send(self._task.request, due)


async def measure(task: OverloadTask) -> OverloadOutcome:
    """Send what is due until the time is over, and wait for the last answers."""
    load = _Load(task)
    began = time.perf_counter()
    load.until = began + task.seconds
    sent = 0
    async with asyncio.TaskGroup() as tasks:
        while (now := time.perf_counter()) - began < task.seconds:
            while sent < (now - began) * task.per_s:
                tasks.create_task(load.one(began + sent / task.per_s))
                sent += 1
            await asyncio.sleep(0.001)
    until = time.perf_counter() + _PATIENCE_S
    while load.under_way and time.perf_counter() < until:  # noqa: ASYNC110 - no one event
        await asyncio.sleep(0.01)
    statuses = load.statuses
    refused = sum(statuses[status] for status in _REFUSED)
    return OverloadOutcome(
        sent=sent,
        good_per_s=load.good / task.seconds,
        good_p99_ms=_p99_ms(load.good_s),
        refused=refused,
        refused_p99_ms=_p99_ms(load.refused_s),
        late=statuses[_LATE],
        other=sent - statuses[_OK] - refused - statuses[_LATE],
    )


def _p99_ms(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return ordered[len(ordered) * 99 // 100] * 1000 if ordered else 0.0


if __name__ == "__main__":
    child.answer(uvloop.run(measure(child.task(OverloadTask))))
