"""Batch jobs in a database: see the port for what its methods promise."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.adapters.sql import idempotency, job_rows
from headrace.adapters.sql.database import Connection, Parameters
from headrace.adapters.sql.job_chunks import SqlChunks, microseconds
from headrace.adapters.sql.job_files import insert_file, no_file, page
from headrace.domain.chunks import Span
from headrace.domain.errors import NotFound
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.domain.jobs import FileProblem, Job
from headrace.ports.job_store import (
    ANY_SIZE,
    NO_QUOTAS,
    Backlog,
    Hold,
    JobClaim,
    PageQuery,
    Quotas,
    Used,
)


class SqlJobStore(SqlChunks):
    """See JobStore. The database is the registry's, and may be shared with it."""

    # --- asked for by callers --------------------------------------------------------------------

    async def create_job(
        self,
        job: Job,
        *,
        quotas: Quotas = NO_QUOTAS,
        once: Once | None = None,
        hold: Hold | None = None,
    ) -> Job:
        """See JobStore.create_job."""
        new: Parameters = {
            **job_rows.job_parameters(job),
            "holder": hold.holder if hold is not None else "",
            "attempt": int(hold is not None),
            "lease_us": microseconds(hold.lease_s) if hold is not None else 0,
        }

        async def create(connection: Connection) -> Job:
            if once is not None:
                await idempotency.carry_out(connection, self._database.dialect, once)
            # no other job of the tenant is created between the look at its quotas and the end
            await connection.fetch(self._sql["lock_batch_tenant"], {"tenant": job.tenant})
            source: Parameters = {"tenant": job.tenant, "id": job.input_file}
            if not await connection.fetch(self._sql["lock_batch_file"], source):
                raise no_file(job.input_file)
            await self._require_room(connection, job, quotas)
            rows = await connection.fetch(self._sql["add_batch_job"], new)
            await connection.commit(announce=False)
            return job_rows.job_of(rows[0])

        return await self._database.change(create)

    async def job(self, tenant: str, id_: str) -> Job:
        """See JobStore.job."""
        place: Parameters = {"tenant": tenant, "id": id_}
        rows = await self._database.fetch(self._sql["batch_job"], place)
        if not rows:
            raise _no_job(id_)
        return job_rows.job_of(rows[0])

    async def jobs(self, query: PageQuery) -> Sequence[Job]:
        """See JobStore.jobs."""
        rows = await self._database.fetch(*page("batch_jobs", query))
        return [job_rows.job_of(row) for row in rows]

    async def cancel_job(self, tenant: str, id_: str) -> Job:
        """See JobStore.cancel_job."""
        async with self._database.writing() as connection:
            rows = await connection.fetch(self._sql["lock_batch_job"], {"job": id_})
            if not rows or (kept := job_rows.kept_job(rows[0])).job.tenant != tenant:
                raise _no_job(id_)
            if kept.has_ended or kept.job.ending != "completed":
                return kept.job  # rows may have been told as expired: how it ends stays
            change = await self._skip(connection, kept)
            rows = await connection.fetch(self._sql["cancel_batch_job"], change)
            await connection.commit(announce=False)
        return job_rows.job_of(rows[0])

    # --- planning and finishing ------------------------------------------------------------------

    async def claim_job(
        self, holder: str, lease_s: float, *, most_bytes: int = ANY_SIZE
    ) -> JobClaim | None:
        """See JobStore.claim_job."""
        size: Parameters = {"most_bytes": most_bytes}
        if not await self._database.fetch(self._sql["is_there_batch_job_to_claim"], size):
            return None
        wish: Parameters = {**size, "holder": holder, "lease_us": microseconds(lease_s)}

        async def claim(connection: Connection) -> JobClaim | None:
            rows = await connection.fetch(self._sql["claim_batch_job"], wish)
            if not rows:
                return None
            await connection.commit(announce=False)
            return job_rows.claim_of(rows[0], holder)

        return await self._database.change(claim)

    async def renew_job(self, claim: JobClaim, lease_s: float, *, failed: bool = False) -> bool:
        """See JobStore.renew_job."""
        lease: Parameters = {"lease_us": microseconds(lease_s), "failed": int(failed)}
        async with self._database.writing() as connection:
            rows = await connection.fetch(self._sql["renew_batch_job"], {**_fence(claim), **lease})
            await connection.commit(announce=False)
        return bool(rows)

    async def release_job(self, claim: JobClaim) -> None:
        """See JobStore.release_job."""
        async with self._database.writing() as connection:
            await connection.fetch(self._sql["release_batch_job"], _fence(claim))
            await connection.commit(announce=False)

    async def add_chunks(self, claim: JobClaim, spans: Sequence[Span], *, first: int) -> bool:
        """See JobStore.add_chunks. Those from `first` on are replaced.

        Raises:
            ValueError: there is a gap before `first`.
        """

        async def add(connection: Connection) -> bool:
            if not await connection.fetch(self._sql["lock_batch_job_to_plan"], _fence(claim)):
                return False
            await self._add_chunks(connection, claim.job.id, spans, first)
            await connection.commit(announce=False)
            return True

        return await self._database.change(add)

    async def planned(
        self, claim: JobClaim, *, chunks: int, rows: int, spans: Sequence[Span] = ()
    ) -> Job | None:
        """See JobStore.planned.

        Raises:
            ValueError: other chunks or rows were added.
        """
        id_ = claim.job.id
        plan: Parameters = {**_fence(claim), "chunks": chunks, "total": rows}

        async def end(connection: Connection) -> Job | None:
            jobs = await connection.fetch(self._sql["plan_batch_job"], plan)
            if not jobs:
                return None
            if spans:
                await self._add_chunks(connection, id_, spans, chunks - len(spans))
            known = await connection.fetch(self._sql["batch_chunks_planned"], {"job": id_})
            if tuple(known[0]) != (chunks, rows):
                msg = f"{id_} has {known[0][0]} chunks and {known[0][1]} rows, not {chunks}, {rows}"
                raise ValueError(msg)
            job = job_rows.job_of(jobs[0])
            if job.state != "in_progress":
                await connection.fetch(self._sql["skip_batch_chunks"], {"job": id_})
            await connection.commit(announce=False)
            return job

        return await self._database.change(end)

    async def refuse(self, claim: JobClaim, problems: Sequence[FileProblem]) -> Job | None:
        """See JobStore.refuse."""
        what = job_rows.document(tuple(problems), "a problem of the file")
        async with self._database.writing() as connection:
            change: Parameters = {**_fence(claim), "problems": what}
            rows = await connection.fetch(self._sql["refuse_batch_job"], change)
            if not rows:
                return None
            none: Parameters = {"job": claim.job.id, "first": 0}
            await connection.fetch(self._sql["forget_batch_chunks"], none)
            await connection.fetch(self._sql["add_batch_input_garbage"], {"job": claim.job.id})
            await connection.commit(announce=False)
        return job_rows.job_of(rows[0])

    async def finish(
        self,
        claim: JobClaim,
        *,
        output: File | None,
        errors: File | None,
        rows_failed: int,
        problems: Sequence[FileProblem] = (),
    ) -> Job | None:
        """See JobStore.finish."""
        end: Parameters = {
            **_fence(claim),
            "output_file": output.id if output is not None else "",
            "error_file": errors.id if errors is not None else "",
            "rows_failed": rows_failed,
            "is_whole": int(not problems),
            "problems": job_rows.document(tuple(problems), "a problem of the file"),
        }

        async def finish(connection: Connection) -> Job | None:
            rows = await connection.fetch(self._sql["finish_batch_job"], end)
            if not rows:
                return None
            job = job_rows.job_of(rows[0])
            for file in (output, errors):
                if file is not None:
                    await insert_file(connection, file)
            await connection.fetch(self._sql["add_batch_input_garbage"], {"job": job.id})
            if job.chunks:
                parts: Parameters = {"key": f"batch/jobs/{job.id}/"}
                await connection.fetch(self._sql["add_batch_garbage"], parts)
            await connection.commit(announce=False)
            return job

        return await self._database.change(finish)

    async def expire_jobs(self, limit: int) -> Sequence[Job]:
        """See JobStore.expire_jobs."""
        expired: list[Job] = []
        over = await self._database.fetch(self._sql["expired_batch_jobs"], {"limit": limit})
        for (id_,) in over:
            async with self._database.writing() as connection:
                rows = await connection.fetch(self._sql["lock_batch_job"], {"job": id_})
                kept = job_rows.kept_job(rows[0])
                if kept.job.ending != "completed" or not (
                    kept.goes_on or kept.job.state == "validating"
                ):
                    continue  # it went on, or another was faster
                change = await self._skip(connection, kept)
                rows = await connection.fetch(self._sql["expire_batch_job"], change)
                await connection.commit(announce=False)
            expired.append(job_rows.job_of(rows[0]))
        return expired

    async def waiting(self) -> Backlog:
        """See JobStore.waiting."""
        rows = await self._database.fetch(self._sql["batch_backlog"], {})
        jobs, unfinished, running, oldest_us = rows[0]
        return Backlog(
            jobs=jobs,
            # of jobs that are being planned none is counted yet
            chunks_waiting=unfinished - running,
            chunks_running=running,
            oldest_s=max(0, oldest_us) / 1_000_000,
        )

    async def close(self) -> None:
        """See JobStore.close."""
        await self._database.close()

    async def _require_room(self, connection: Connection, job: Job, quotas: Quotas) -> None:
        if quotas.bound_jobs:
            place: Parameters = {"tenant": job.tenant}
            jobs, size_bytes = (await connection.fetch(self._sql["batch_quotas_used"], place))[0]
            quotas.require_job(Used(jobs=jobs, rows_bytes=size_bytes), job.input_bytes)

    async def _add_chunks(
        self, connection: Connection, job: str, spans: Sequence[Span], first: int
    ) -> None:
        place: Parameters = {"job": job, "before": first - 1}
        if first and not await connection.fetch(self._sql["is_there_batch_chunk"], place):
            msg = f"{job} has no chunk {first - 1}, so {first} is not the next"
            raise ValueError(msg)
        # of a planning before, or of an answer that was lost
        await connection.fetch(self._sql["forget_batch_chunks"], {"job": job, "first": first})
        chunks = [job_rows.chunk_parameters(job, n, span) for n, span in enumerate(spans, first)]
        if chunks:
            await connection.run_many(self._sql["add_batch_chunk"], chunks)

    async def _skip(self, connection: Connection, kept: job_rows.KeptJob) -> Parameters:
        """Skip what nobody works on of a locked job; the parameters of the change that says so."""
        id_ = kept.job.id
        skipped = 0
        if kept.is_planned:
            skipped = len(await connection.fetch(self._sql["skip_batch_chunks"], {"job": id_}))
        return {"job": id_, "skipped": skipped}


def _fence(claim: JobClaim) -> dict[str, str | int]:
    return {"job": claim.job.id, "holder": claim.holder, "attempt": claim.attempt}


def _no_job(id_: str) -> NotFound:
    return NotFound(f"there is no batch job {id_[:64]!r}: list the jobs to see those there are")
