"""One process of the batch service: its API and its workers as they are composed.

It is forked, not started, so that thousands fit into minutes: whoever forks has imported all and
runs no thread. Nothing else is shared; what it is told to do to itself happens to a real process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from headrace.adapters.artifacts.batch_objects import object_store
from headrace.adapters.sql import postgres
from headrace.adapters.sql.database import Database
from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.job_store import SqlJobStore
from headrace.adapters.sql.opening import open_store
from headrace.compose import batch as composition
from headrace.compose.batch import BatchHouse
from headrace.domain.calls import ANONYMOUS
from headrace.domain.errors import HeadraceError
from headrace.domain.idempotency import IdempotencyKey
from headrace.ports.idempotency import KeptAnswer
from headrace.ports.job_queue import JobQueue, Message
from headrace.ports.job_store import PageQuery
from headrace.registry.registry import utc_now
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.server import HttpServer
from tests.support.batch_routes import BatchPort, routed
from tests.support.chaos import native
from tests.support.chaos.counted import Counted, count_awaits, count_system, counted
from tests.support.chaos.forked import fork
from tests.support.chaos.model import Control, Doubling
from tests.support.chaos.place import Place
from tests.support.chaos.shapes import Shape
from tests.support.chaos.sites import Fault, Sites

_START_S: Final = 30.0
_KEY_LEASE_S: Final = 1.0
_GOSSIP_S: Final = 0.05
#: Tasks that a process has only while a chunk or a job is in its hands.
_BUSY: Final = frozenset({"Worker._see_to", "_renew"})
_LOOKS: Final = 10


class Process:
    """A forked process, by its pid; `tell` is what it says of itself, a line each."""

    def __init__(self, pid: int, said: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.port = 0
        self.code: int | None = None
        self._said = said
        self._text = ""

    def heard(self, word: str, timeout_s: float) -> str | None:
        """The rest of the next line that begins with `word`; None: none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self._text.splitlines(keepends=True):
                if line.endswith("\n") and line.startswith(word):
                    self._text = self._text.replace(line, "", 1)
                    return line[len(word) :].strip()
            left = deadline - time.monotonic()
            if not select.select([self._said], [], [], max(left, 0))[0]:
                return None
            data = os.read(self._said, 65536)
            if not data:  # it is gone, and all that it said was looked at
                return None
            self._text += data.decode()

    def listening(self) -> None:
        """Wait until it takes requests. Raises AssertionError with its log."""
        port = self.heard("port ", _START_S)
        assert port is not None, f"a process did not start: {self.log.read_text()[-3000:]}"
        self.port = int(port)

    def is_over(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is there."""
        if not self.is_over():
            os.kill(self.pid, number)

    def end(self, number: signal.Signals = signal.SIGKILL, timeout_s: float = 20.0) -> int:
        """Signal it and wait for its exit code."""
        self.send(number)
        deadline = time.monotonic() + timeout_s
        while not self.is_over():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        with contextlib.suppress(OSError):
            os.close(self._said)
        assert self.code is not None
        return self.code


def start(place: Place, shape: Shape, *, name: str, fault: Fault | None = None) -> Process:
    """Fork a process; `listening` waits for it."""
    said, saying = os.pipe()
    log = place.folder / f"{name}.log"

    def work() -> None:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        logging.basicConfig(
            stream=sys.stderr,
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            force=True,
        )
        sites = Sites(fault, tell=lambda line: _say(saying, line))
        asyncio.run(_main(place, shape, sites, fault, saying))

    pid = fork(work)
    os.close(saying)
    return Process(pid, said, log)


def _say(saying: int, line: str) -> None:
    os.write(saying, f"{line}\n".encode())


async def _main(place: Place, shape: Shape, sites: Sites, fault: Fault | None, saying: int) -> None:
    """Serve and work until SIGTERM. On SIGUSR1 it says when nothing is in its hands."""
    loop = asyncio.get_running_loop()
    count_system(sites)
    count_awaits(loop, sites)
    stop = asyncio.Event()
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    async with asyncio.TaskGroup() as tasks, _house(place, shape, sites, saying) as (house, extra):
        asgi = routed(house.wire.routes(), principal=lambda _: ANONYMOUS)
        server = await HttpServer.listen(
            BatchPort(asgi), address=("127.0.0.1", 0), limits=HttpLimits(), tasks=tasks
        )
        working = [tasks.create_task(work) for work in (house.run(), *extra)]
        telling = tasks.create_task(_tell_idle(asked, saying))
        sites.armed = True
        native.arm(fault, saying)
        _say(saying, f"port {server.address[1]}")
        await stop.wait()
        sites.armed = False
        sites.seen.update(native.sites())
        for task in (*working, telling):
            task.cancel()
        await server.drain(1.0)
    with (place.folder / f"sites-{os.getpid()}").open("w") as file:
        file.writelines(f"{count} {site}\n" for site, count in sites.seen.items())


async def _tell_idle(asked: asyncio.Event, saying: int) -> None:
    while True:
        await asked.wait()
        asked.clear()
        looks = 0
        while looks < _LOOKS:
            busy = any(
                getattr(task.get_coro(), "__qualname__", "") in _BUSY
                for task in asyncio.all_tasks()
            )
            looks = 0 if busy else looks + 1
            await asyncio.sleep(0.01)
        _say(saying, "idle")


@contextlib.asynccontextmanager
async def _house(
    place: Place, shape: Shape, sites: Sites, saying: int
) -> AsyncIterator[tuple[BatchHouse, list[Any]]]:
    """The batch service, composed as the platform does, on ports that are counted."""
    settings = place.settings
    queues: list[JobQueue] = []

    compose_queue = composition._queue  # noqa: SLF001 - what it makes is counted

    def new_queue(*given: Any) -> Any:
        queue = compose_queue(*given)
        queues.append(queue)
        return Counted(_Twice(queue) if shape.repeats else queue, "queue", sites)

    replaced = {
        "SqlJobStore": lambda database: Counted(SqlJobStore(database), "store", sites),
        "object_store": lambda found, *, data_dir: Counted(
            object_store(found, data_dir=data_dir), "objects", sites
        ),
        "_queue": new_queue,
    }
    for name, made in replaced.items():
        setattr(composition, name, made)
    connection = postgres._PostgresConnection  # noqa: SLF001 - its commits are sites
    for name in ("commit", "fetch"):
        setattr(connection, name, counted(getattr(connection, name), f"postgres.{name}", sites))
    store = await open_store(settings.database, data_dir=place.folder, now=utc_now)
    try:
        service = Counted(Doubling(seconds=shape.model_s), "model", sites)
        house = BatchHouse(
            settings,
            database=store.database,
            idempotency=Counted(_BriefKeys(store.database), "keys", sites),
            data_dir=place.folder,
            service=lambda: service,
            control=Control,  # type: ignore[arg-type]
            metrics=Metrics(version="0"),
            ids=RequestIds(),
            last_online=lambda: -math.inf,  # batch jobs have it all to themselves
        )
        extra = [_gossip(store.database, queues[0])] if shape.repeats else []
        if queues[0].shared:
            extra.append(_tell_joined(queues[0], saying))
        try:
            yield house, extra
        finally:
            await house.close()
    finally:
        await store.close()


class _BriefKeys(SqlIdempotencyStore):
    """Keys whose holders are given up soon: a minute is too long for thousands of cases."""

    async def claim(
        self,
        key: IdempotencyKey,
        *,
        request: str,
        holder: str,
        lease_s: float = _KEY_LEASE_S,
    ) -> KeptAnswer | None:
        return await super().claim(key, request=request, holder=holder, lease_s=lease_s)


class _Twice:
    """A queue into which everything is put twice."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def publish(self, messages: list[Message]) -> None:
        await self._queue.publish([*messages, *messages])


async def _gossip(database: Database, queue: JobQueue) -> None:
    """Messages about every chunk there is, whatever became of it, again and again."""
    store = SqlJobStore(database)
    while True:
        with contextlib.suppress(HeadraceError):
            for job in await store.jobs(PageQuery(tenant=ANONYMOUS.tenant)):
                messages = [
                    Message(ref=chunk.ref)
                    async for chunk in store.chunks(job.id)
                    if chunk.state != "waiting"
                ]
                if job.state == "in_progress":
                    await queue.publish(messages)
        await asyncio.sleep(_GOSSIP_S)


async def _tell_joined(queue: Any, saying: int) -> None:
    while not queue.partitions:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
    _say(saying, "joined")
