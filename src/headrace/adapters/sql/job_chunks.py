"""Chunks of batch jobs in a database: see the port for what its methods promise.

Whoever changes whether a chunk is open locks its job first; chunks are locked in their order. So no
two transactions wait for each other, and what a job counts is what its chunks are.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Final

from headrace.adapters.sql import job_rows
from headrace.adapters.sql.database import Connection, Parameters, Row
from headrace.adapters.sql.job_files import SqlFiles
from headrace.adapters.sql.job_turns import JobTurn, TenantTurn, share
from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, Claim, Span
from headrace.ports.job_store import ClaimedChunk, Completed, Hold, JobClaim, Overdue

_AT_ONCE: Final = 500  # chunks that are read, or queued anew
_NO_END: Final = 2**62


class SqlChunks(SqlFiles):
    """The part of JobStore that is about chunks."""

    async def queue_chunks(
        self, *, by: str, window: int, shared: bool, expected: bool = False
    ) -> Sequence[Chunk]:
        """See JobStore.queue_chunks."""
        if not expected:  # most often there is nothing to do, and then nobody is locked out
            rows = await self._database.fetch(self._sql["batch_chunks_to_queue"], {"by": by})
            if not rows[0][2] or rows[0][0 if shared else 1] >= window:
                return []

        async def queue(connection: Connection) -> Sequence[Chunk]:
            turn = (await connection.fetch(self._sql["take_batch_turn"], {}))[0][0]
            rows = await connection.fetch(self._sql["batch_chunks_to_queue"], {"by": by})
            room = window - rows[0][0 if shared else 1]
            if room <= 0:
                return []
            tenants = await self._to_serve(connection, room)
            turn = share(tenants, turn=turn, room=room)
            queued: list[Chunk] = []
            for tenant in tenants:
                jobs = [job for job in tenant.jobs if job.given]
                for job in jobs:
                    queued += await self._queue(connection, job, by)
                if jobs:
                    moved: Parameters = {
                        "tenant": tenant.tenant,
                        "turn": tenant.turn,
                        "job_turn": tenant.job_turn,
                    }
                    await connection.fetch(self._sql["serve_batch_tenant"], moved)
            await connection.fetch(self._sql["keep_batch_turn"], {"turn": turn})
            await connection.commit(announce=False)
            return queued

        return await self._database.change(queue)

    async def requeue(
        self, *, by: str, older_than_s: float, most_patience: int = 1
    ) -> Sequence[Chunk]:
        """See JobStore.requeue. A part of them at a time."""
        older: Parameters = {"older_us": microseconds(older_than_s)}
        lost: Parameters = {**older, "limit": _AT_ONCE}
        requeued: list[Chunk] = []
        rows = await self._database.fetch(self._sql["lost_batch_chunks"], lost)
        for job, numbers in _by_job(rows):
            async with self._database.writing() as connection:
                await connection.fetch(self._sql["lock_batch_job"], {"job": job})
                for number in numbers:
                    one: Parameters = {
                        **older, "by": by, "most": most_patience, "job": job, "number": number
                    }  # fmt: skip
                    found = await connection.fetch(self._sql["requeue_batch_chunk"], one)
                    requeued += [job_rows.chunk_of(row) for row in found]
                await connection.commit(announce=False)
        return requeued

    async def claim_chunk(self, ref: ChunkRef, holder: str, lease_s: float) -> ClaimedChunk | None:
        """See JobStore.claim_chunk."""
        wish: Parameters = {**_place(ref), "holder": holder, "lease_us": microseconds(lease_s)}

        async def claim(connection: Connection) -> ClaimedChunk | None:
            rows = await connection.fetch(self._sql["claim_batch_chunk"], wish)
            if not rows:
                return None
            jobs = await connection.fetch(self._sql["batch_job_of_chunk"], {"job": ref.job})
            await connection.commit(announce=False)
            chunk = job_rows.chunk_of(rows[0])
            return ClaimedChunk(Claim(ref, chunk.attempt, holder), chunk, job_rows.job_of(jobs[0]))

        return await self._database.change(claim)

    async def renew_chunks(self, claims: Sequence[Claim], lease_s: float) -> frozenset[Claim]:
        """See JobStore.renew_chunks."""
        if not claims:
            return frozenset()
        lease: Parameters = {"lease_us": microseconds(lease_s)}

        async def renew(connection: Connection) -> frozenset[Claim]:
            live = set()
            for claim in sorted(claims, key=lambda claim: claim.ref):
                rows = await connection.fetch(
                    self._sql["renew_batch_chunk"], {**_fence(claim), **lease}
                )
                if rows and rows[0][0]:
                    live.add(claim)
            await connection.commit(announce=False)
            return frozenset(live)

        return await self._database.change(renew)

    async def complete_chunk(
        self,
        claim: Claim,
        result: ChunkResult,
        rest: Span | None = None,
        *,
        hold: Hold | None = None,
    ) -> Completed | None:
        """See JobStore.complete_chunk."""
        outcome: Parameters = {**_fence(claim), **job_rows.result_parameters(result)}

        async def complete(connection: Connection) -> Completed | None:
            # the job first, for its lock; without a commit it was never counted
            close = "close_batch_chunk" if rest is None else "split_batch_chunk"
            left = await connection.fetch(self._sql[close], outcome)
            if not left:
                return None
            done = await connection.fetch(self._sql["complete_batch_chunk"], outcome)
            if not done:
                return None
            if rest is not None:
                await self._add_rest(connection, claim.ref, result, rest, left[0])
            to_finish = None
            if hold is not None and not left[0][0]:
                chunk = job_rows.chunk_of(done[0])
                to_finish = await self._claim_to_finish(connection, chunk, hold)
            await connection.commit(announce=False)
            return Completed(to_finish)

        return await self._database.change(complete)

    async def release_chunk(self, claim: Claim, *, story: str = "", delay_s: float = 0.0) -> bool:
        """See JobStore.release_chunk."""
        async with self._database.writing() as connection:
            jobs = await connection.fetch(self._sql["lock_batch_job"], {"job": claim.ref.job})
            rows = await connection.fetch(self._sql["batch_chunk"], _place(claim.ref))
            if not jobs or not rows:
                return False
            chunk = job_rows.chunk_of(rows[0])
            fence = {**_fence(claim), "until_us": _NO_END, "delay_us": microseconds(delay_s)}
            if not await self._hand_back(connection, jobs[0], chunk, fence, story):
                return False
            await connection.commit(announce=False)
        return True

    async def release_overdue(self, limit: int) -> Sequence[Overdue]:
        """See JobStore.release_overdue."""
        if await self._database.fetch(self._sql["is_there_batch_time_ahead"], {}):
            await self._database.change(self._begin_anew)
        released: list[Overdue] = []
        late = await self._database.fetch(self._sql["overdue_batch_chunks"], {"limit": limit})
        for job, numbers in _by_job(late):
            async with self._database.writing() as connection:
                jobs = await connection.fetch(self._sql["lock_batch_job"], {"job": job})
                for number in numbers:
                    place: Parameters = {"job": job, "number": number}
                    rows = await connection.fetch(self._sql["overdue_batch_chunk"], place)
                    if not rows:  # it was renewed or ended meanwhile
                        continue
                    kept = job_rows.kept_chunk(rows[0])
                    claim = Claim(kept.chunk.ref, kept.chunk.attempt, kept.holder)
                    fence = {**_fence(claim), "until_us": kept.until_us, "delay_us": 0}
                    story = f"{kept.holder} was silent past its lease"
                    rows = await self._hand_back(connection, jobs[0], kept.chunk, fence, story)
                    released += [Overdue(job_rows.chunk_of(row), kept.holder) for row in rows]
                await connection.commit(announce=False)
        return released

    async def bury_chunk(self, ref: ChunkRef, attempt: int) -> bool:
        """See JobStore.bury_chunk."""
        async with self._database.writing() as connection:
            if not await self._close(connection, ref.job):
                return False
            buried: Parameters = {**_place(ref), "attempt": attempt}
            if not await connection.fetch(self._sql["bury_batch_chunk"], buried):
                return False
            await connection.commit(announce=False)
        return True

    async def chunks(self, job: str) -> AsyncIterator[Chunk]:
        """See JobStore.chunks."""
        after = -1
        while True:
            some: Parameters = {"job": job, "after": after, "limit": _AT_ONCE}
            rows = await self._database.fetch(self._sql["batch_chunks_of_job"], some)
            for row in rows:
                chunk = job_rows.chunk_of(row)
                after = chunk.span.start
                yield chunk
            if len(rows) < _AT_ONCE:
                return

    async def _to_serve(self, connection: Connection, room: int) -> list[TenantTurn]:
        """Tenants and jobs that may come next: no more of either than there is room."""
        served = []
        size: Parameters = {"limit": room}
        rows = await connection.fetch(self._sql["batch_tenants_to_serve"], size)
        for tenant, turn, job_turn in rows:
            whose: Parameters = {**size, "tenant": tenant}
            found = await connection.fetch(self._sql["batch_jobs_to_serve"], whose)
            jobs = [JobTurn(row[0], row[1], row[2], row[3]) for row in found]
            served.append(TenantTurn(tenant, turn, job_turn, jobs))
        return served

    async def _queue(self, connection: Connection, job: JobTurn, by: str) -> list[Chunk]:
        served: Parameters = {"job": job.id, "turn": job.turn}
        if not await connection.fetch(self._sql["serve_batch_job"], served):
            return []  # it was cancelled meanwhile
        wish: Parameters = {"job": job.id, "by": by, "count": job.given}
        rows = await connection.fetch(self._sql["queue_batch_chunks"], wish)
        return sorted(map(job_rows.chunk_of, rows), key=lambda chunk: chunk.ref)

    async def _hand_back(
        self, connection: Connection, job: Row, chunk: Chunk, fence: Parameters, story: str
    ) -> Sequence[Row]:
        """Let a chunk wait, or skip it, under its job's lock; no row where the lease is lost."""
        goes_on = job_rows.kept_job(job).goes_on
        lines = job_rows.told(chunk.story, story) if story else job_rows.story_of(chunk)
        change: Parameters = {
            **fence,
            "state": "waiting" if goes_on else "skipped",
            "failures": chunk.failures + bool(story),
            "story": lines,
        }
        rows = await connection.fetch(self._sql["hand_back_batch_chunk"], change)
        if rows and not goes_on:
            await self._close(connection, chunk.ref.job)
        return rows

    async def _add_rest(
        self, connection: Connection, ref: ChunkRef, result: ChunkResult, rest: Span, split: Row
    ) -> None:
        """Make a chunk of what is left of another, under their job's lock.

        Raises:
            ValueError: it is not what is left.
        """
        _, number, state = split
        lies: Parameters = {**job_rows.chunk_parameters(ref.job, ref.index, rest)}
        told: Parameters = {"rows_told": result.completed + result.failed}
        if not await connection.fetch(self._sql["shorten_batch_chunk"], {**lies, **told}):
            msg = f"{rest} is not what is left of chunk {ref.index} of {ref.job} behind {result}"
            raise ValueError(msg)
        await connection.fetch(
            self._sql["add_batch_rest"], {**lies, "rest": number, "state": state}
        )

    async def _claim_to_finish(
        self, connection: Connection, last: Chunk, hold: Hold
    ) -> JobClaim | None:
        wish: Parameters = {
            "job": last.ref.job, "holder": hold.holder, "lease_us": microseconds(hold.lease_s),
        }  # fmt: skip
        rows = await connection.fetch(self._sql["claim_batch_job_to_finish"], wish)
        if not rows:
            return None
        kept = job_rows.kept_job(rows[0])
        chunks = (last,) if kept.job.chunks == 1 else ()
        return JobClaim(kept.job, kept.attempt, hold.holder, "finish", chunks)

    async def _begin_anew(self, connection: Connection) -> None:
        """What a clock wrote that was put back since: nobody is to wait until it is there again."""
        await connection.fetch(self._sql["begin_batch_jobs_anew"], {})
        await connection.fetch(self._sql["begin_batch_chunks_anew"], {})
        await connection.commit(announce=False)

    async def _close(self, connection: Connection, job: str) -> Sequence[Row]:
        """Count one open chunk less."""
        uncounted: Parameters = {"job": job, "completed": 0, "failed": 0}
        return await connection.fetch(self._sql["close_batch_chunk"], uncounted)


def microseconds(seconds: float) -> int:
    """As the database counts, rounded."""
    return round(seconds * 1_000_000)


def _place(ref: ChunkRef) -> dict[str, str | int]:
    return {"job": ref.job, "number": ref.index}


def _fence(claim: Claim) -> dict[str, str | int]:
    return {**_place(claim.ref), "holder": claim.holder, "attempt": claim.attempt}


def _by_job(rows: Sequence[Row]) -> list[tuple[str, list[int]]]:
    """Jobs with the numbers of their chunks, in the order in which they are locked."""
    ordered = sorted((row[0], row[1]) for row in rows)
    groups = itertools.groupby(ordered, key=lambda row: row[0])
    return [(job, [number for _, number in group]) for job, group in groups]
