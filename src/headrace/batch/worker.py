"""Working on chunks: claimed, run, written, committed, and only then acknowledged.

Whatever happens in between, the chunk is worked on again by whoever has its lease next; what was
written under an earlier attempt is nobody's. So each row has one outcome that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from headrace.batch.chunk_leases import ChunkLeases, Lease
from headrace.batch.known_models import KnownModels
from headrace.batch.lines import filled_lines
from headrace.batch.metrics import BatchMetrics
from headrace.batch.not_run import not_run, request_id
from headrace.batch.parts import PartWriter
from headrace.batch.row_job import RowJob
from headrace.batch.row_runner import RowRunner
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import Offer, Spare, nobody
from headrace.domain.calls import Principal
from headrace.domain.chunks import ChunkRef, ChunkResult, Span
from headrace.domain.errors import (
    BatchInconsistent,
    HeadraceError,
    StorageFull,
    StoreUnavailable,
    why,
)
from headrace.domain.jobs import Job
from headrace.domain.scopes import EVERYTHING
from headrace.ports.job_queue import DeadLetter, Delivery, JobQueue
from headrace.ports.job_store import ClaimedChunk, Completed, JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_logger = logging.getLogger(__name__)
_BACK_OFF_S: Final = 1.0
_MAX_DOUBLINGS: Final = 32
_LARGE_BYTES: Final = 1024 * 1024
#: Of the platform, whichever chunk it is.
_PASSING: Final = (StoreUnavailable, StorageFull)
#: Makes what runs the rows of a job's chunk.
NewRunner: TypeAlias = Callable[[Job], Awaitable[RowRunner]]


def _has_failed(delivery: Delivery) -> bool:
    """Whether a message is about a chunk that working on has failed before."""
    return delivery.message is not None and delivery.message.failures > 0


async def _joined(pieces: list[bytes]) -> bytes:
    """Pieces as one; many bytes on a thread, as such a join lets go of the interpreter."""
    if len(pieces) < 2 or sum(map(len, pieces)) < _LARGE_BYTES:  # noqa: PLR2004
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)


def _rest(span: Span, lines: bytes, rows: int) -> Span:
    """Where the rows of a chunk lie behind its first `rows`, which are `lines`."""
    start, line = span.start + len(lines), span.first_line + lines.count(b"\n")
    return Span(start, span.end, line, span.rows - rows)


def _leave(room: asyncio.Semaphore, places: int, _: object) -> None:
    for _place in range(places):
        room.release()


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
        known_models: KnownModels | None = None,
        changed: Callable[[], None],
        done: Callable[[], None] = lambda: None,
        offer: Offer = nobody,
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
        self._known_models = known_models  # None: whatever comes is run here
        self._changed = changed
        self._done = done
        self._offer = offer
        self._clock = clock

    async def run(self) -> None:
        """Work for ever. Cancelled, it hands back what it has not finished.

        A chunk that has failed is worked on alone: should it end the process, no other has failed.
        """
        places = self._settings.chunks_in_hand
        room = asyncio.Semaphore(places)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                delivery = await self._next()
                taken = places if _has_failed(delivery) else 1
                for _ in range(taken - 1):
                    await room.acquire()
                tasks.create_task(self._see_to(delivery)).add_done_callback(
                    partial(_leave, room, taken)
                )

    async def _next(self) -> Delivery:
        """The next message, however long the queue does not answer."""
        while True:
            try:
                return await self._queue.take()
            except HeadraceError as error:
                _logger.warning("no message can be taken: %s", error.message)
            except Exception:  # the root of a task
                _logger.exception("no message can be taken")
            await asyncio.sleep(_BACK_OFF_S)

    async def _see_to(self, delivery: Delivery) -> None:
        """Do what a message asks for, as soon as stores answer: queues wait for what is taken."""
        while not delivery.revoked:
            try:
                await self.see_to(delivery)
            except HeadraceError as error:
                _logger.warning("a message has to wait: %s", error.message)
                await asyncio.sleep(_BACK_OFF_S)
            except Exception:  # the root of a task; the chunk is queued anew
                _logger.exception("a message was not worked on")
                delivery.done()
                return
            else:
                return

    async def see_to(self, delivery: Delivery) -> None:
        """Do what one message asks for, and acknowledge it.

        Raises:
            StoreUnavailable: nothing was begun, and the message is not acknowledged.
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
        is_looked_for = True
        claimed = await self._claimed(message.ref)
        if claimed is None:
            self._metrics.duplicates.value += 1
        elif claimed.chunk.failures and not message.failures:
            # an old message, come again: it failed since, and there may be others beside it here
            await self._hand_back(claimed)
        elif await self._left_to_others(claimed):
            delivery.done()
            return  # nobody is woken here: it would come back before others have looked
        else:
            async with self._leases.kept(claimed.claim) as lease:
                is_looked_for = await self._work(claimed, lease)
        delivery.done()  # after the store knows: what is lost in between is delivered again
        self._done()
        if is_looked_for:
            self._changed()

    async def _claimed(self, ref: ChunkRef) -> ClaimedChunk | None:
        """Claim a chunk. Cancelled meanwhile, it hands back what it may have been given."""
        claiming = asyncio.ensure_future(
            self._store.claim_chunk(ref, self._holder, self._settings.lease_s)
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with contextlib.suppress(HeadraceError):
                if (claimed := await claiming) is not None:
                    await self._hand_back(claimed)
            raise

    async def _left_to_others(self, claimed: ClaimedChunk) -> bool:
        """Hand a chunk back whose model others may have; whether it was."""
        if self._known_models is None:
            return False
        try:
            leave_s = await self._known_models.leave_s(claimed)
        except asyncio.CancelledError:
            await self._hand_back(claimed)
            raise
        if leave_s is None:
            return False
        await self._hand_back(claimed, delay_s=leave_s)
        return True

    async def _work(self, claimed: ClaimedChunk, lease: Lease) -> bool:
        """Bring a chunk to its end, or hand it back; whether there may be a job to finish now."""
        begun = self._clock()
        try:
            worked = await self._result(claimed, lease)
            if worked is None:
                self._metrics.lost_leases.value += 1
                await self._hand_back(claimed)  # given up over a silent store, it may be ours yet
            else:
                result, rest = worked
                # with a rest there is nothing to finish yet, and something to queue
                with self._offer() if rest is None else nobody() as spare:
                    completed = await self._complete(lease, result, rest, spare)
                if completed is not None:
                    self._metrics.chunk(claimed.job, result, self._clock() - begun)
                    return spare is None
        except _PASSING as error:  # nothing that the chunk is to blame for
            _logger.warning("a chunk of %s has to wait: %s", claimed.job.id, error.message)
            await self._hand_back(claimed, delay_s=self._delay_s(claimed.chunk.attempt))
        except HeadraceError as error:
            await self._fail(claimed, why(error))
        except asyncio.CancelledError:
            await self._hand_back(claimed)
            raise
        except Exception as error:
            _logger.exception("a chunk of %s was not worked on", claimed.job.id)
            await self._fail(claimed, f"{type(error).__name__}: {error}")
        return True

    async def _complete(
        self, lease: Lease, result: ChunkResult, rest: Span | None, spare: Spare | None
    ) -> Completed | None:
        """Tell the store, as long as the lease may be ours; None where it is not.

        An answer that was lost leaves it open which: then the chunk is done, and not counted here.
        """
        while True:
            try:
                completed = await self._store.complete_chunk(
                    lease.claim, result, rest, hold=spare.hold if spare is not None else None
                )
            except StoreUnavailable as error:
                if self._clock() >= lease.until:
                    raise
                _logger.warning("a chunk's result has to wait: %s", error.message)
                await asyncio.sleep(_BACK_OFF_S)
            else:
                if completed is None:
                    self._metrics.lost_leases.value += 1
                elif spare is not None and completed.claim is not None:
                    spare.give(completed.claim)
                return completed

    async def _result(
        self, claimed: ClaimedChunk, lease: Lease
    ) -> tuple[ChunkResult, Span | None] | None:
        """Run rows and write the parts: what became of them, and where the rows lie that are left.

        None: the lease was lost, and all was in vain.
        """
        job, chunk = claimed.job, claimed.chunk
        span = chunk.span
        pieces = self._objects.read(job.input_key, span.start, span.end)
        lines = await _joined([piece async for piece in pieces])
        if len(lines) != span.end - span.start:
            msg = (
                f"the input of {job.id} has changed: {len(lines)} bytes of chunk {chunk.ref.index}"
            )
            raise BatchInconsistent(msg)
        # in one folder: each new one would cost the disk a flush more
        place = f"batch/jobs/{job.id}/{chunk.ref.index:08}-{claimed.claim.attempt}"
        output = PartWriter(self._objects, f"{place}-output.jsonl")
        errors: list[bytes] = []

        async def write(answers: bytes, failures: bytes) -> None:
            await output.write(answers)
            if failures:
                errors.append(failures)

        rows = RowJob(
            model=job.target.model,
            version=job.target.version,
            principal=Principal(job.principal, job.tenant, EVERYTHING),
            max_attempts=job.max_attempts,
        )
        runner = await self._new_runner(job)
        run = await runner.run(
            lines,
            rows,
            write=write,
            stop=lambda: lease.stopped,
            slice_s=self._settings.chunk_s,
        )
        lines = lines[: len(lines) - run.left_bytes]
        failed = run.failed + len(run.unrun)
        if run.unrun:
            now = await self._store.job(job.tenant, job.id)
            if now.ending == "completed":
                return None  # the job goes on, so it was the lease that was lost
            errors = self._with_unrun(now, span, lines, errors, run.unrun)
        told = run.completed + failed
        rest = _rest(span, lines, told) if run.left_bytes else None
        if told > span.rows or (rest is None) != (told == span.rows):
            msg = f"{job.id}: {run.completed} + {failed} of {span.rows} rows of a chunk were run"
            raise BatchInconsistent(msg)
        failures = PartWriter(self._objects, f"{place}-error.jsonl")
        for line in errors:
            await failures.write(line)
        result = ChunkResult(
            completed=run.completed,
            failed=failed,
            output=await output.end(),
            errors=await failures.end(),
        )
        return result, rest

    def _with_unrun(
        self, job: Job, span: Span, rows: bytes, errors: list[bytes], unrun: Sequence[str]
    ) -> list[bytes]:
        """Error lines, with those of the rows `unrun`, in the rows' order as in other chunks."""
        head, error_line = self._codec.head, self._codec.error_line
        told: dict[str, bytes] = {}
        for part in errors:
            told |= {head(line).custom_id: line for line in part.splitlines(keepends=True)}
        left, error = frozenset(unrun), not_run(job.ending)
        lines = []
        for number, row in filled_lines(rows):
            custom_id = head(row).custom_id
            if custom_id in left:
                identity = request_id(job, span.first_line + number)
                lines.append(error_line(custom_id, error, request_id=identity))
            elif custom_id in told:
                lines.append(told[custom_id])
        return lines

    async def _fail(self, claimed: ClaimedChunk, story: str) -> None:
        """Let another have it later: it has failed once more."""
        self._metrics.failures.value += 1
        _logger.warning(
            "a chunk was not worked on",
            extra={"job": claimed.job.id, "chunk": claimed.chunk.ref.index, "why": story},
        )
        delay_s = self._delay_s(claimed.chunk.failures + 1)
        await self._hand_back(claimed, story=story, delay_s=delay_s)

    def _delay_s(self, times: int) -> float:
        """How long a chunk waits that was tried so often."""
        return float(min(2 ** min(times - 1, _MAX_DOUBLINGS), self._settings.max_retry_delay_s))

    async def _hand_back(
        self, claimed: ClaimedChunk, *, story: str = "", delay_s: float = 0.0
    ) -> None:
        with contextlib.suppress(HeadraceError):  # its lease runs out
            await asyncio.shield(
                self._store.release_chunk(claimed.claim, story=story, delay_s=delay_s)
            )
