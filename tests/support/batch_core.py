"""The batch core over stores in memory: each of its parts, and jobs whose files are given."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from headrace.adapters.memory_queue import MemoryQueue
from headrace.batch.chunk_leases import ChunkLeases
from headrace.batch.dispatcher import Dispatcher
from headrace.batch.failed_rows import FailedRows
from headrace.batch.finisher import Finisher
from headrace.batch.hands import Hands
from headrace.batch.job_leases import Held
from headrace.batch.known_models import KnownModels
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.row_runner import RowRunner, RowRunnerSettings
from headrace.batch.settings import BatchSettings
from headrace.batch.sweep import Sweep
from headrace.batch.warden import Warden
from headrace.batch.worker import Worker
from headrace.domain.calls import Call
from headrace.domain.chunks import Chunk, ChunkRef
from headrace.domain.errors import StoreUnavailable
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.jobs import Job
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.ports.job_queue import Message
from headrace.ports.job_store import JobClaim
from headrace.ports.rows import RowCodec
from headrace.telemetry.metrics import Metrics
from headrace.transport.oip_rest.rows import OipRows
from tests.support import job_makers
from tests.support.memory_job_store import MemoryJobStore
from tests.support.memory_objects import MemoryObjects

URL: Final = "/v2/models/mlp/infer"
HOLDER: Final = "here"


def a_row(custom_id: str, value: float = 1.0, *, url: str = URL) -> bytes:
    """A line without its newline."""
    entry = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    document = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"inputs": [entry]}}
    return json.dumps(document).encode()


def some_rows(count: int, *, first: int = 0) -> bytes:
    """A file of rows whose values are their numbers."""
    return b"".join(a_row(f"row-{n}", n) + b"\n" for n in range(first, first + count))


def ids_of(lines: bytes) -> list[str]:
    """The custom ids of a file of rows, answers or errors, in its order."""
    return [json.loads(line)["custom_id"] for line in lines.splitlines()]


def codes_of(lines: bytes) -> list[str]:
    """The codes of a file of errors, in its order."""
    return [json.loads(line)["error"]["code"] for line in lines.splitlines()]


def failing(
    *names: str, error: Exception | None = None, times: int = 1_000_000
) -> Callable[[str], Awaitable[None]]:
    """A gate of a store that does not answer to these operations, so many times."""
    left = itertools.count(times, -1)

    async def gate(name: str) -> None:
        if name in names and next(left) > 0:
            raise error or StoreUnavailable(f"{name}: no answer")

    return gate


class Doubling:
    """A model that answers twice its input. `fails` may raise, or answer something else."""

    def __init__(self) -> None:
        self.asked: list[InferRequest] = []
        self.fails: Callable[[InferRequest], InferResponse | None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.width = 1  # how often each number is repeated

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if (other := self.fails(request)) is not None:
            return other
        array = (request.content.inputs[0].array * 2).repeat(self.width, axis=1)
        return InferResponse("mlp", "1", [Tensor("y", "FP32", array)], request.content.id)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class Delivered:
    """A message in hand. `raw` alone where it cannot be read."""

    source = "chunks/0/7"

    def __init__(self, message: Message | None, raw: bytes = b"", core: Core | None = None) -> None:
        self.message = message
        self.raw = raw
        self.revoked = False
        self.acknowledged = 0
        self.calls_before: dict[str, int] = {}  # of the store, at the acknowledgement
        self._core = core

    def done(self) -> None:
        self.acknowledged += 1
        if self._core is not None:
            self.calls_before = dict(self._core.store.calls)


class Core:
    """One process's parts over stores of its own. `now` is every clock."""

    def __init__(
        self, *, codec: RowCodec | None = None, piece_bytes: int = 1024**2, **settings: Any
    ) -> None:
        self.now = 1_800_000_000.0
        self.settings = BatchSettings(**{"look_s": 0.001, **settings})
        self.store = MemoryJobStore(now=self._clock)
        self.objects = MemoryObjects(piece_bytes=piece_bytes, now=self._clock)
        self.codec = codec or OipRows()
        self.queue = MemoryQueue()
        self.model = Doubling()
        self.families = Metrics()
        self.metrics = BatchMetrics(self.families)
        self.told = 0  # how often it was said that something has changed
        self.done = 0  # how often, that a chunk is done with
        self.in_flight = 2
        self.knows = True  # whether this process knows jobs' models
        self.planner = Planner(
            store=self.store,
            objects=self.objects,
            codec=self.codec,
            clock=self._clock,
            settings=self.settings,
        )
        self.finisher = Finisher(
            store=self.store,
            objects=self.objects,
            codec=self.codec,
            settings=self.settings,
            now=self._clock,
        )
        self.failed_rows = FailedRows(
            store=self.store, objects=self.objects, codec=self.codec, settings=self.settings
        )
        self.hands = Hands(
            store=self.store,
            planner=self.planner,
            finisher=self.finisher,
            settings=self.settings,
            metrics=self.metrics,
            holder=HOLDER,
            changed=self.changed,
        )
        self.leases = ChunkLeases(
            store=self.store,
            lease_s=self.settings.lease_s,
            look_s=self.settings.look_s,
            clock=self._clock,
        )
        self.dispatcher = Dispatcher(
            store=self.store,
            queue=self.queue,
            settings=self.settings,
            metrics=self.metrics,
            by=HOLDER,
        )
        self.known_models = KnownModels(
            self._knows, settings=self.settings, metrics=self.metrics, clock=self._clock
        )
        self.worker = Worker(
            store=self.store,
            objects=self.objects,
            queue=self.queue,
            runner=self._runner,
            codec=self.codec,
            leases=self.leases,
            settings=self.settings,
            metrics=self.metrics,
            holder=HOLDER,
            known_models=self.known_models,
            changed=self.changed,
            done=self._note_done,
            offer=self.hands.offer,
            clock=self._clock,
        )
        self.warden = Warden(
            store=self.store,
            objects=self.objects,
            dispatcher=self.dispatcher,
            settings=self.settings,
            changed=self.changed,
        )

        self.sweep = Sweep(
            store=self.store,
            objects=self.objects,
            settings=self.settings,
            metrics=self.metrics,
            chance=lambda: 0.0,
        )

    def value(self, name: str) -> float:
        """Of a metric, as it is scraped; 0 where there is none."""
        lines = self.families.render()[0].decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def changed(self) -> None:
        self.told += 1

    def _note_done(self) -> None:
        self.done += 1

    async def job(self, data: bytes, **fields: Any) -> Job:
        """A new job that reads `data`."""
        source = await self.store.add_file(job_makers.file(size_bytes=len(data)))
        self.objects.objects[source.key] = data
        return await self.store.create_job(job_makers.job(source, **fields))

    async def given(self, data: bytes) -> Job:
        """A new job, given to hands that wait; there are some."""
        source = await self.store.add_file(job_makers.file(size_bytes=len(data)))
        self.objects.objects[source.key] = data
        with self.hands.offer() as spare:
            assert spare is not None
            job = await self.store.create_job(job_makers.job(source), hold=spare.hold)
            spare.give(JobClaim.of_new(job, spare.hold))
        return job

    async def held(self) -> Held:
        """The job that is to be planned or finished next, in hand."""
        return Held(await job_makers.claimed_job(self.store, HOLDER))

    async def planned(self, data: bytes, **fields: Any) -> Job:
        """A job in progress. No other may be waiting to be planned or finished."""
        new = await self.job(data, **fields)
        job = await self.planner.plan(await self.held())
        assert job is not None
        assert job.id == new.id
        assert job.state == "in_progress", job.problems
        return job

    async def chunks(self, job: Job) -> list[Chunk]:
        return await job_makers.chunks_of(self.store, job)

    async def read(self, job: Job) -> Job:
        """The job as it is by now."""
        return await job_makers.read(self.store, job)

    async def work(self, job: Job, indexes: Iterable[int] | None = None) -> None:
        """Let some chunks of a job be worked on, or all."""
        gate, self.store.gate = self.store.gate, None  # what follows is the test's own question
        failures = [chunk.failures for chunk in await self.chunks(job)]
        self.store.gate = gate
        for index in range(job.chunks) if indexes is None else indexes:
            await self.worker.see_to(self.delivered(job, index, failures=failures[index]))

    async def finish(self) -> Job:
        """Finish the job that is to be finished."""
        job = await self.finisher.finish(await self.held())
        assert job is not None
        return job

    async def file(self, job: Job, id_: str) -> bytes:
        """The bytes of a job's file."""
        return self.objects.objects[(await self.store.file(job.tenant, id_)).key]

    def delivered(self, job: Job, index: int = 0, *, failures: int = 0) -> Delivered:
        """A message about a chunk."""
        return Delivered(Message(ref=ChunkRef(job.id, index), failures=failures), core=self)

    def _clock(self) -> float:
        return self.now

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def _knows(self, _: Job) -> bool:
        return self.knows

    async def _runner(self, _: Job) -> RowRunner:
        numbers = itertools.count()
        return RowRunner(
            service=self.model,
            codec=self.codec,
            mergeable=lambda *_: 4,
            ids=lambda: f"r{next(numbers)}",
            clock=self._clock,
            sleep=self._sleep,
            chance=lambda: 0.5,
            settings=RowRunnerSettings(in_flight=self.in_flight),
        )
