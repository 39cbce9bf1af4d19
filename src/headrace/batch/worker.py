"""Working on chunks: claimed, run, written, committed, and only then acknowledged.

Whatever happens in between, the chunk is worked on again by whoever has its lease next; what was
written under an earlier attempt is nobody's. So each row has one outcome that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from headrace.batch.chunk_leases import ChunkLeases, Lease
from headrace.batch.metrics import BatchMetrics
from headrace.batch.not_run import not_run
from headrace.batch.row_runner import RowJob, RowRunner
from headrace.batch.settings import BatchSettings
from headrace.domain.calls import Principal
from headrace.domain.chunks import ChunkResult, Part
from headrace.domain.errors import AlreadyExists, BatchInconsistent, HeadraceError, why
from headrace.domain.jobs import Job
from headrace.domain.scopes import EVERYTHING
from headrace.ports.job_queue import DeadLetter, Delivery, JobQueue
from headrace.ports.job_store import ClaimedChunk, JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_logger = logging.getLogger(__name__)
_BACK_OFF_S: Final = 1.0
#: Makes what runs the rows of a job's chunk.
NewRunner: TypeAlias = Callable[[Job], Awaitable[RowRunner]]


class Worker:
    """Takes messages and works on their chunks, a few at a time. `holder` names this process."""

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        queue: JobQueue,
        runner: NewRunner,
        codec: RowCodec,
        leases: ChunkLeases,
        settings: BatchSettings,
        metrics: BatchMetrics,
        holder: str,
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._objects = objects
        self._queue = queue
        self._new_runner = runner
        self._codec = codec
        self._leases = leases
        self._settings = settings
        self._metrics = metrics
        self._holder = holder
        self._changed = changed
        self._clock = clock

    async def run(self) -> None:
        """Work for ever. Cancelled, it hands back what it has not finished."""
        room = asyncio.Semaphore(self._settings.chunks_in_hand)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                try:
                    delivery = await self._queue.take()
                except HeadraceError as error:
                    room.release()
                    _logger.warning("%s", error.message)
                    await asyncio.sleep(_BACK_OFF_S)
                    continue
                tasks.create_task(self._see_to(delivery)).add_done_callback(
                    lambda _: room.release()
                )

    async def _see_to(self, delivery: Delivery) -> None:
        try:
            await self.see_to(delivery)
        except HeadraceError as error:
            _logger.warning("a message was not worked on: %s", error.message)
        except Exception:  # the root of a task
            _logger.exception("a message was not worked on")

    async def see_to(self, delivery: Delivery) -> None:
        """Do what one message asks for, and acknowledge it.

        Raises:
            StoreUnavailable: nothing was begun; the message is delivered again, or its chunk is
                queued anew.
        """
        message = delivery.message
        if message is None:
            reason = "it cannot be read"
            await self._queue.bury(
                DeadLetter(reason=reason, raw=delivery.raw, source=delivery.source)
            )
            self._metrics.dead_letters.value += 1
            delivery.done()
            return
        claimed = await self._store.claim_chunk(message.ref, self._holder, self._settings.lease_s)
        if claimed is None:
            self._metrics.duplicates.value += 1
        else:
            async with self._leases.kept(claimed.claim) as lease:
                await self._work(claimed, lease)
        delivery.done()  # after the store knows: what is lost in between is delivered again
        self._changed()

    async def _work(self, claimed: ClaimedChunk, lease: Lease) -> None:
        """Bring a chunk to its end, or hand it back."""
        begun = self._clock()
        try:
            result = await self._result(claimed, lease)
        except HeadraceError as error:
            await self._hand_back(claimed, why(error))
            return
        except asyncio.CancelledError:
            await self._hand_back(claimed, "")
            raise
        except Exception as error:
            _logger.exception("a chunk of %s was not worked on", claimed.job.id)
            await self._hand_back(claimed, f"{type(error).__name__}: {error}")
            return
        if result is None:
            return
        if await self._store.complete_chunk(claimed.claim, result):
            self._metrics.chunk(claimed.job, result, self._clock() - begun)
        else:
            self._metrics.lost_leases.value += 1

    async def _result(self, claimed: ClaimedChunk, lease: Lease) -> ChunkResult | None:
        """Run the rows and write the parts. None: the lease was lost, and all was in vain."""
        job, chunk = claimed.job, claimed.chunk
        span = chunk.span
        pieces = self._objects.read(job.input_key, span.start, span.end)
        lines = b"".join([piece async for piece in pieces])
        if len(lines) != span.end - span.start:
            msg = (
                f"the input of {job.id} has changed: {len(lines)} bytes of chunk {chunk.ref.index}"
            )
            raise BatchInconsistent(msg)
        outputs: list[bytes] = []
        errors: list[bytes] = []

        async def write(answers: bytes, failures: bytes) -> None:
            if answers:
                outputs.append(answers)
            if failures:
                errors.append(failures)

        rows = RowJob(
            model=job.target.model,
            version=job.target.version,
            principal=Principal(job.principal, job.tenant, EVERYTHING),
            max_attempts=job.max_attempts,
        )
        runner = await self._new_runner(job)
        run = await runner.run(lines, rows, write=write, stop=lambda: lease.stopped)
        failed = run.failed
        if run.unrun:
            ending = await self._ending(job)
            if ending is None:  # the job goes on, so it was the lease that was lost
                self._metrics.lost_leases.value += 1
                return None
            told, error = self._codec.error_line, not_run(ending.ending)
            errors += [told(id_, error, request_id="") for id_ in run.unrun]
            errors = self._in_order(lines, errors)
            failed += len(run.unrun)
        if run.completed + failed != span.rows:
            msg = f"{job.id}: {run.completed} + {failed} of {span.rows} rows of a chunk were run"
            raise BatchInconsistent(msg)
        folder = f"batch/jobs/{job.id}/{chunk.ref.index:08}/{claimed.claim.attempt}"
        output, error_part = await asyncio.gather(
            self._put(f"{folder}/output.jsonl", outputs), self._put(f"{folder}/error.jsonl", errors)
        )
        return ChunkResult(completed=run.completed, failed=failed, output=output, errors=error_part)

    def _in_order(self, rows: bytes, lines: list[bytes]) -> list[bytes]:
        """Error lines in the order of their rows, as those of other chunks are."""
        head = self._codec.head
        told = {head(line).custom_id: line + b"\n" for part in lines for line in part.split(b"\n")}
        custom_ids = (head(row).custom_id for row in rows.split(b"\n") if row.strip())
        return [told[custom_id] for custom_id in custom_ids if custom_id in told]

    async def _ending(self, job: Job) -> Job | None:
        """The job, if it is being ended before its time."""
        now = await self._store.job(job.tenant, job.id)
        return None if now.state == "in_progress" and now.ending == "completed" else now

    async def _put(self, key: str, lines: list[bytes]) -> Part:
        data = b"".join(lines)
        if not data:
            return Part()
        try:
            await self._objects.put(key, data)
        except AlreadyExists as error:  # an attempt has one holder: nobody else writes here
            raise BatchInconsistent(f"{key} is there already") from error
        return Part(key, len(data))

    async def _hand_back(self, claimed: ClaimedChunk, story: str) -> None:
        """Let another have it; with a story it has failed."""
        failures = claimed.chunk.failures
        delay_s = min(2.0**failures, self._settings.max_retry_delay_s) if story else 0.0
        if story:
            self._metrics.failures.value += 1
            _logger.warning(
                "a chunk was not worked on",
                extra={"job": claimed.job.id, "chunk": claimed.chunk.ref.index, "why": story},
            )
        with contextlib.suppress(HeadraceError):  # its lease runs out
            await asyncio.shield(
                self._store.release_chunk(claimed.claim, story=story, delay_s=delay_s)
            )
