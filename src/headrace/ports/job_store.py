"""Where jobs, their chunks and the files they read and write are known.

The store is the truth: queues only carry the news that there is work. Leases and time stamps are by
the store's own clock, so that processes whose clocks differ agree on who may do what. Every change
by a holder is fenced: it changes nothing once another has the lease. Every method raises
StoreUnavailable where the store does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal, Protocol

import msgspec

from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, Claim, Span
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.domain.jobs import FileProblem, Job


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Some items of a tenant by their creation, newest first unless `ascending`."""

    tenant: str
    limit: int = 20
    after: str = ""  # the id of the last one seen; one that is gone: from the beginning
    ascending: bool = False
    purpose: str = ""  # of files; "": any
    state: str = ""  # of jobs; "": any


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may have at a time; 0: any number."""

    jobs: int = 0  # that have not ended
    rows_bytes: int = 0  # bytes of their input files together


class JobClaim(msgspec.Struct, frozen=True):
    """The right to plan or finish a job until the lease is over. `attempt` is the fence."""

    job: Job
    attempt: int
    holder: str
    to: Literal["plan", "finish"] = "plan"


class ClaimedChunk(msgspec.Struct, frozen=True):
    """A chunk to work on, and the job it is of."""

    claim: Claim
    chunk: Chunk
    job: Job


class Overdue(msgspec.Struct, frozen=True):
    """A chunk whose holder was silent past its lease, and is waiting again."""

    chunk: Chunk
    holder: str


class Files(Protocol):
    """Files by tenant. A file whose time is over is not there."""

    async def add_file(self, file: File, *, once: Once | None = None) -> File:
        """Keep a file; the answer has its `created_at`. With it `once` is marked, see carry_out."""
        ...

    async def file(self, tenant: str, id_: str) -> File:
        """One file. Raises NotFound."""
        ...

    async def files(self, query: PageQuery) -> Sequence[File]:
        """One more than `limit` where there are more."""
        ...

    async def delete_file(self, tenant: str, id_: str) -> None:
        """Forget a file; its object becomes garbage.

        Raises:
            NotFound.
            Conflict: a job that has not ended reads it.
        """
        ...

    async def take_garbage(self, limit: int) -> Sequence[str]:
        """Keys of objects that no file and no job needs any more, expired files' among them.

        They are answered again until `removed` is told.
        """
        ...

    async def removed(self, keys: Sequence[str]) -> None:
        """Say that objects are gone from the object store."""
        ...


NO_QUOTAS: Final = Quotas()


class JobStore(Files, Protocol):
    """Jobs and their chunks."""

    # --- asked for by callers --------------------------------------------------------------------

    async def create_job(
        self, job: Job, *, quotas: Quotas = NO_QUOTAS, once: Once | None = None
    ) -> Job:
        """Keep a new job in state `validating`; the answer has its times and its revision.

        Raises:
            NotFound: the input file is gone.
            TenantBusy: a quota is used up.
        """
        ...

    async def job(self, tenant: str, id_: str) -> Job:
        """One job. Raises NotFound."""
        ...

    async def jobs(self, query: PageQuery) -> Sequence[Job]:
        """One more than `limit` where there are more."""
        ...

    async def cancel_job(self, tenant: str, id_: str) -> Job:
        """`cancelling` from now on, unless it has ended or is being cancelled: then as it is.

        Chunks that nobody works on are `skipped`. Raises NotFound.
        """
        ...

    # --- planning and finishing ------------------------------------------------------------------

    async def claim_job(self, holder: str, lease_s: float) -> JobClaim | None:
        """A job to plan (`validating`, or `cancelling` before it is planned) or to finish.

        To finish is one that has no open chunks left and has not ended: it is in `finalizing`, or
        in `cancelling`. None where no job is without a holder.
        """
        ...

    async def renew_job(self, claim: JobClaim, lease_s: float) -> bool:
        """Go on holding; False: it is another's by now."""
        ...

    async def release_job(self, claim: JobClaim) -> None:
        """Hand it back at once."""
        ...

    async def add_chunks(self, claim: JobClaim, spans: Sequence[Span], *, first: int) -> bool:
        """Add chunks with the numbers from `first`; with 0, those of an earlier planning go.

        False: the lease is lost, and nothing was added.
        """
        ...

    async def planned(self, claim: JobClaim, *, chunks: int, rows: int) -> Job | None:
        """Its chunks are complete: `in_progress`; of one that was cancelled they are skipped.

        None: the lease is lost.
        """
        ...

    async def refuse(self, claim: JobClaim, problems: Sequence[FileProblem]) -> Job | None:
        """`failed`, with what is wrong with its file. None: the lease is lost."""
        ...

    async def finish(
        self, claim: JobClaim, *, output: File | None, errors: File | None, rows_failed: int
    ) -> Job | None:
        """The end: the job's `ending`, with its files, and with the counts as they were written.

        `rows_failed` is how many lines the error file has, with those of chunks that did not run.
        None: the lease is lost, and nothing was changed.
        """
        ...

    # --- chunks ----------------------------------------------------------------------------------

    async def queue_chunks(self, *, by: str, window: int, shared: bool) -> Sequence[Chunk]:
        """Mark chunks as queued, so that `window` are queued or running, and answer them.

        `shared`: counted are everybody's, else those that are queued or held by `by`. Jobs take
        turns, those of high priority more often: a large one does not make small ones wait.
        """
        ...

    async def requeue(self, *, by: str, older_than_s: float) -> Sequence[Chunk]:
        """Chunks that were queued long ago and that nobody claimed: queued anew, and answered."""
        ...

    async def claim_chunk(self, ref: ChunkRef, holder: str, lease_s: float) -> ClaimedChunk | None:
        """Begin to work on a chunk; its attempt counts up.

        None where there is nothing to do: it is done or skipped, another works on it, or its job is
        not in progress.
        """
        ...

    async def renew_chunks(self, claims: Sequence[Claim], lease_s: float) -> frozenset[Claim]:
        """Go on holding. The answer holds those that may begin more rows: their job goes on.

        Where a job is being ended its chunks stay their holders', so that what they have is kept.
        """
        ...

    async def complete_chunk(self, claim: Claim, result: ChunkResult) -> bool:
        """`done`: its rows are counted, once. False: the lease is lost, and nothing was changed.

        A job whose last open chunk it was is `finalizing`, or stays `cancelling`, without a holder.
        A chunk of a job that is being cancelled is completed with the rows that were run.
        """
        ...

    async def release_chunk(self, claim: Claim, *, story: str = "", delay_s: float = 0.0) -> bool:
        """Hand a chunk back: `waiting`, for `delay_s` at least; of a cancelled job, `skipped`.

        With a story it has failed once more. False: the lease is lost.
        """
        ...

    async def release_overdue(self, limit: int) -> Sequence[Overdue]:
        """Let go of chunks whose leases are over: each has failed once more and is waiting."""
        ...

    async def bury_chunk(self, ref: ChunkRef, attempt: int) -> bool:
        """`dead`: its rows are told as failed when the job is finished.

        False where it is not waiting or queued, or not under this attempt.
        """
        ...

    async def expire_jobs(self, limit: int) -> Sequence[Job]:
        """End jobs whose window is over: `ending` is expired, what waits is skipped.

        Answers those that it ended; their running chunks stop when they are renewed.
        """
        ...

    def chunks(self, job: str) -> AsyncIterator[Chunk]:
        """Every chunk of a job, in order, without holding them all."""
        ...

    async def waiting(self) -> Backlog:
        """How much there is to do."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What is not done yet, over all tenants."""

    jobs: int = 0
    chunks_waiting: int = 0
    chunks_running: int = 0
    oldest_s: float = 0.0  # since the oldest job that has not ended was created
