"""The batch service of one process: its use cases, and whoever works on jobs here."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from headrace.adapters.artifacts.batch_objects import object_store
from headrace.adapters.memory_queue import MemoryQueue, MemoryQueueSettings
from headrace.adapters.sql.database import Database
from headrace.adapters.sql.job_store import SqlJobStore
from headrace.batch import endpoints
from headrace.batch.chunk_leases import ChunkLeases
from headrace.batch.dispatcher import Dispatcher
from headrace.batch.failed_rows import FailedRows
from headrace.batch.files import Files
from headrace.batch.finisher import Finisher
from headrace.batch.hands import Hands
from headrace.batch.jobs import Jobs
from headrace.batch.known_models import KnownModels
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.portion import Portion
from headrace.batch.row_runner import RowRunner
from headrace.batch.storage import Storage
from headrace.batch.sweep import Sweep
from headrace.batch.turns import Turns
from headrace.batch.warden import Warden
from headrace.batch.worker import Worker
from headrace.compose.merge_limits import MergeLimits
from headrace.domain.errors import HeadraceError, UnknownModel
from headrace.domain.jobs import Job, Target
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.inference import InferenceService
from headrace.ports.job_queue import JobQueue
from headrace.ports.model_control import ModelControl
from headrace.settings import QueueSettings, Settings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.oip_rest.rows import OipRows
from headrace.transport.openai.application import OpenAiWire
from headrace.transport.openai.rows import OpenAiRows

_logger = logging.getLogger(__name__)
_PORTIONS_KEPT: Final = 1024
_JOBS_AT_ONCE: Final = 2  # that are planned or finished, whatever their size; a small one besides
_MORE_JOBS_AT_ONCE: Final = 8  # that are given by whoever makes them ready; most are small


class BatchHouse:
    """All parts of the batch service in this process, over the registry's database."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        idempotency: IdempotencyStore,
        data_dir: Path,
        service: Callable[[], InferenceService],
        control: Callable[[], ModelControl],
        last_online: Callable[[], float],
        metrics: Metrics,
        ids: RequestIds,
    ) -> None:
        batch = settings.batch
        self._settings = batch
        self._service = service
        self._control = control
        self._ids = ids
        self._database = database
        self._store = store = SqlJobStore(database)
        self._objects = objects = object_store(settings.artifacts, data_dir=data_dir)
        self._queue = queue = _queue(settings.queue, metrics)
        self._codec = codec = OipRows()
        self._openai_rows = OpenAiRows(codec)
        self._turns = Turns(batch.turns, last_online=last_online, clock=time.monotonic)
        self._limits = MergeLimits(control, clock=time.monotonic)
        self._portions: dict[tuple[str, Target], Portion] = {}
        self._metrics = BatchMetrics(metrics)
        holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._dispatcher = Dispatcher(
            store=store, queue=queue, settings=batch, metrics=self._metrics, by=holder
        )
        self._hands = Hands(
            store=store,
            planner=Planner(
                store=store,
                objects=objects,
                codec=codec,
                clock=time.monotonic,
                turns=self._turns,
                folder=data_dir,
                settings=batch,
            ),
            finisher=Finisher(
                store=store, objects=objects, codec=codec, settings=batch, now=time.time
            ),
            settings=batch,
            metrics=self._metrics,
            holder=holder,
            changed=self._dispatcher.planned,
        )
        self._leases = ChunkLeases(
            store=store, lease_s=batch.lease_s, look_s=batch.look_s, clock=time.monotonic
        )
        self._worker = Worker(
            store=store,
            objects=objects,
            queue=queue,
            runner=self._runner,
            codec=codec,
            leases=self._leases,
            settings=batch,
            metrics=self._metrics,
            holder=holder,
            known_models=KnownModels(
                self._knows, settings=batch, metrics=self._metrics, clock=time.monotonic
            ),
            changed=self._changed,
            done=self._dispatcher.done,
            offer=self._hands.offer,
            clock=time.monotonic,
        )
        self._warden = Warden(
            store=store,
            objects=objects,
            dispatcher=self._dispatcher,
            settings=batch,
            changed=self._changed,
        )
        self._sweep = Sweep(
            store=store,
            objects=objects,
            settings=batch,
            metrics=self._metrics,
            chance=random.random,
        )
        storage = Storage(store=store, settings=batch)
        files = Files(
            store=store, objects=objects, storage=storage, settings=batch, clock=time.time
        )
        jobs = Jobs(
            store=store,
            objects=objects,
            failed_rows=FailedRows(store=store, objects=objects, codec=codec, settings=batch),
            storage=storage,
            settings=batch,
            clock=time.time,
            monotonic=time.monotonic,
            changed=self._changed,
            offer=self._hands.offer,
            obstacle=self._obstacle,
        )
        self.wire = OpenAiWire(files=files, jobs=jobs, idempotency=idempotency)

    async def run(self) -> None:
        """Work on jobs. Never returns; cancelled, it hands back what it has in hand."""
        async with asyncio.TaskGroup() as tasks:
            for work in (
                self._queue.run,
                self._leases.run,
                *[self._hands.run] * _JOBS_AT_ONCE,
                self._hands.run_small,
                *[self._hands.take_given] * _MORE_JOBS_AT_ONCE,
                self._dispatcher.run,
                self._worker.run,
                self._warden.run,
                self._sweep.run,
                self._hear,
                self._look,
            ):
                tasks.create_task(work())

    async def close(self) -> None:
        """Let go of connections."""
        await self._queue.close()
        await self._objects.close()

    async def _obstacle(self, tenant: str, target: Target) -> HeadraceError | None:
        """See headrace.batch.jobs. What else is in a model's way may have passed once it runs."""
        unknown = await self._unknown(tenant, target)
        if unknown is not None:
            return unknown if self._settings.known_models_only else None
        unfit = await self._control().of(tenant).unfit(target.model, target.version)
        if unfit == "openai":
            return endpoints.at_openai(target.model)
        return endpoints.streamed(target.model) if unfit == "stream" else None

    async def _unknown(self, tenant: str, target: Target) -> UnknownModel | None:
        """Why a target is none that this process knows; None: it does, ready or not."""
        try:
            problem = await self._control().of(tenant).obstacle(target.model, target.version)
        except HeadraceError:  # whoever knows does not answer
            return None
        return problem if isinstance(problem, UnknownModel) else None

    async def _knows(self, job: Job) -> bool:
        return await self._unknown(job.tenant, job.target) is None

    async def _runner(self, job: Job) -> RowRunner:
        target = job.target
        limit = 0
        if target.model:  # else each row names its own, and none is merged
            limit = await self._limits.learn(job.tenant, target.model, target.version)
        return RowRunner(
            service=self._service(),
            codec=self._codec if target.model else self._openai_rows,
            mergeable=partial(_limit_of, target.model, limit),
            ids=self._ids.request_id,
            clock=time.monotonic,
            sleep=asyncio.sleep,
            chance=random.random,
            turns=self._turns,
            portion=self._portion(job),
            settings=self._settings.rows,
        )

    def _portion(self, job: Job) -> Portion:
        """What is known of the model's rows."""
        key = (job.tenant, job.target)
        if key not in self._portions:
            if len(self._portions) >= _PORTIONS_KEPT:
                self._portions.clear()
            self._portions[key] = Portion(self._settings.turns.stretch_s)
        return self._portions[key]

    def _changed(self) -> None:
        self._hands.wanted.set()
        self._dispatcher.wanted.set()

    async def _hear(self) -> None:
        """Have what other processes planned begun with here as well, at once."""
        async for _ in self._database.news():
            self._dispatcher.heard()

    async def _look(self) -> None:
        """Count what there is to do."""
        while True:
            try:
                self._metrics.backlog(await self._store.waiting())
            except HeadraceError as error:
                _logger.warning("what there is to do cannot be counted: %s", error.message)
            except Exception:  # the root of a task
                _logger.exception("what there is to do cannot be counted")
            await asyncio.sleep(self._settings.backlog_s)


def _limit_of(known: str, limit: int, model: str, _: str) -> int:
    return limit if model == known else 0


def _queue(settings: QueueSettings, metrics: Metrics) -> JobQueue:
    if isinstance(settings, MemoryQueueSettings):
        return MemoryQueue()
    from headrace.adapters.kafka.metrics import QueueMetrics
    from headrace.adapters.kafka.queue import KafkaQueue

    queue = KafkaQueue(settings)
    QueueMetrics(queue, metrics)
    return queue
