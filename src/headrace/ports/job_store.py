"""Where jobs, their chunks and the files they read and write are known.

The store is the truth: queues only carry the news that there is work. Leases and time stamps are by
the store's own clock, so that processes whose clocks differ agree on who may do what. Where it is
put back, leases and delays last no longer for it, and a job's stamps stay in order. Every change
by a holder is fenced: it changes nothing once another has the lease. Every method raises
StoreUnavailable where the store does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal, Protocol, Self

import msgspec

from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, Claim, Span
from headrace.domain.errors import TenantBusy
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.domain.jobs import FileProblem, Job
from headrace.domain.parameters import FilesFull


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Some items of a tenant by their creation, newest first unless `ascending`."""

    tenant: str
    limit: int = 20
    after: str = ""  # the id of the last one seen; one that is gone: from the beginning
    ascending: bool = False
    purpose: str = ""  # of files; "": any
    state: str = ""  # of jobs; "": any
    everybody: bool = False  # items of all tenants, whatever `tenant` is


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may have at a time; 0: any number."""

    jobs: int = 0  # that have not ended
    rows_bytes: int = 0  # bytes of their input files together
    files: int = 0
    stored_bytes: int = 0  # bytes of its files together

    @property
    def bound_jobs(self) -> bool:
        """Whether there may not be any number of jobs."""
        return bool(self.jobs or self.rows_bytes)

    @property
    def bound_files(self) -> bool:
        """Whether there may not be any number of files."""
        return bool(self.files or self.stored_bytes)

    def require_job(self, used: Used, input_bytes: int) -> None:
        """Raises TenantBusy where there is no room for one more job."""
        if self.jobs and used.jobs >= self.jobs:
            raise TenantBusy(
                f"{used.jobs} jobs have not ended, and there may be {self.jobs}: "
                "wait for one, or cancel one"
            )
        size_bytes = used.rows_bytes + input_bytes
        if self.rows_bytes and size_bytes > self.rows_bytes:
            raise TenantBusy(
                f"jobs that have not ended would read {size_bytes} bytes, and there may be "
                f"{self.rows_bytes}: wait for one, or cancel one"
            )

    def require_file(self, used: Used, size_bytes: int) -> None:
        """Raises FilesFull where there is no room for one more file."""
        if self.files and used.files >= self.files:
            raise FilesFull(f"this tenant has {used.files} files, and may have {self.files}")
        self.require_bytes(used, size_bytes)

    def require_bytes(self, used: Used, size_bytes: int) -> None:
        """Raises FilesFull where there is no room for so many more bytes of files."""
        size_bytes += used.stored_bytes
        if self.stored_bytes and size_bytes > self.stored_bytes:
            raise FilesFull(
                f"this tenant's files would have {size_bytes} bytes, and may have "
                f"{self.stored_bytes}"
            )


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has now of what Quotas bounds."""

    jobs: int = 0
    rows_bytes: int = 0
    files: int = 0
    stored_bytes: int = 0


NO_QUOTAS: Final = Quotas()
#: Of an input file.
ANY_SIZE: Final = 2**62


class Hold(msgspec.Struct, frozen=True):
    """Who is to have a lease, and for how long."""

    holder: str
    lease_s: float


class JobClaim(msgspec.Struct, frozen=True):
    """The right to plan or finish a job until the lease is over. `attempt` is the fence."""

    job: Job
    attempt: int
    holder: str
    to: Literal["plan", "finish"] = "plan"
    chunks: tuple[Chunk, ...] = ()  # all of a job that is to be finished, where they are known
    failures: int = 0  # of those who had it before, to do the same

    @classmethod
    def of_new(cls, job: Job, hold: Hold) -> Self:
        """That of a job which was created under `hold`."""
        return cls(job, 1, hold.holder)


class ClaimedChunk(msgspec.Struct, frozen=True):
    """A chunk to work on, and the job it is of."""

    claim: Claim
    chunk: Chunk
    job: Job


class Completed(msgspec.Struct, frozen=True):
    """A chunk is done. The claim is that of its job, to finish it."""

    claim: JobClaim | None = None


class Overdue(msgspec.Struct, frozen=True):
    """A chunk whose holder was silent past its lease, and is waiting again."""

    chunk: Chunk
    holder: str


class Files(Protocol):
    """Files by tenant. A file whose time is over is not there."""

    async def add_file(
        self, file: File, *, quotas: Quotas = NO_QUOTAS, once: Once | None = None
    ) -> File:
        """Keep a file; the answer has its `created_at`. With it `once` is marked, see carry_out.

        Raises:
            FilesFull: a quota is used up.
        """
        ...

    async def used(self, tenant: str) -> Used:
        """What a tenant has now."""
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

    async def needed(self, objects: Mapping[str, str]) -> frozenset[str]:
        """Those keys that are a file's, or are kept for a job that has not ended.

        Each is given with the id of the job for which it is kept until that has ended, "" for none;
        an object that a job reads is kept in any case. All are looked up at one moment, or many
        together.
        """
        ...

    async def database(self) -> str:
        """What tells this data from other stores': the same in every process, for ever."""
        ...


class JobStore(Files, Protocol):
    """Jobs and their chunks."""

    # --- asked for by callers --------------------------------------------------------------------

    async def create_job(
        self,
        job: Job,
        *,
        quotas: Quotas = NO_QUOTAS,
        once: Once | None = None,
        hold: Hold | None = None,
    ) -> Job:
        """Keep a new job in state `validating`; the answer has its times and its revision.

        With `hold` it is claimed to be planned at once: see `JobClaim.of_new`.

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
        """`cancelling` from now on, and `cancelled` in the end; also one that is `finalizing`.

        One that has ended, is being cancelled or has expired stays as it is. Chunks that nobody
        works on are `skipped`. Raises NotFound.
        """
        ...

    # --- planning and finishing ------------------------------------------------------------------

    async def claim_job(
        self, holder: str, lease_s: float, *, most_bytes: int = ANY_SIZE
    ) -> JobClaim | None:
        """A job to plan (`validating`, or `cancelling` before it is planned) or to finish.

        To finish is one that has no open chunks left and has not ended: it is in `finalizing`, or
        in `cancelling`. None where no job is without a holder.

        Tenants take turns to have their jobs planned, by the bytes of their input files; with
        `most_bytes`, jobs whose file has more are left to others.
        """
        ...

    async def renew_job(self, claim: JobClaim, lease_s: float, *, failed: bool = False) -> bool:
        """Go on holding; False: it is another's by now.

        With `failed` it has failed once more to be planned, or to be finished: see JobClaim.
        """
        ...

    async def release_job(self, claim: JobClaim) -> None:
        """Hand it back at once."""
        ...

    async def add_chunks(self, claim: JobClaim, spans: Sequence[Span], *, first: int) -> bool:
        """Add chunks with the numbers from `first`; with 0, those of an earlier planning go.

        False: the lease is lost, and nothing was added.
        """
        ...

    async def planned(
        self, claim: JobClaim, *, chunks: int, rows: int, spans: Sequence[Span] = ()
    ) -> Job | None:
        """Its chunks are complete: `in_progress`; of one that was cancelled they are skipped.

        With `spans` the last of them are added as by `add_chunks`; `chunks` and `rows` count all.
        None: the lease is lost, and nothing was changed.
        """
        ...

    async def refuse(self, claim: JobClaim, problems: Sequence[FileProblem]) -> Job | None:
        """`failed`, with what is wrong with its file. None: the lease is lost."""
        ...

    async def finish(
        self,
        claim: JobClaim,
        *,
        output: File | None,
        errors: File | None,
        rows_failed: int,
        problems: Sequence[FileProblem] = (),
    ) -> Job | None:
        """The end: the job's `ending`, with its files, and with the counts as they were written.

        `rows_failed` is how many lines the error file has, with those of chunks that did not run.
        With `problems` the job is `failed`: its files do not tell of all its rows. None: the lease
        is lost, and nothing was changed.
        """
        ...

    # --- chunks ----------------------------------------------------------------------------------

    async def queue_chunks(
        self, *, by: str, window: int, shared: bool, expected: bool = False
    ) -> Sequence[Chunk]:
        """Mark chunks as queued, so that `window` are queued or running, and answer them.

        `shared`: counted are everybody's, else those that are queued or held by `by`. Tenants
        take turns, and the jobs of each among themselves, those of high priority more often: a
        large one does not make small ones wait.
        `expected`: there is something to queue, most likely, and no cheap look comes first.
        """
        ...

    async def requeue(
        self, *, by: str, older_than_s: float, most_patience: int = 1
    ) -> Sequence[Chunk]:
        """Chunks that were queued long ago and that nobody claimed: queued anew, and answered.

        Each time a chunk has to wait twice as long for the next, up to `most_patience` times.
        """
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

    async def complete_chunk(
        self,
        claim: Claim,
        result: ChunkResult,
        rest: Span | None = None,
        *,
        hold: Hold | None = None,
    ) -> Completed | None:
        """`done`: its rows are counted, once. None: the lease is lost, and nothing was changed.

        With `rest`, where its last rows lie, it ends ahead of them, and they become a chunk that
        waits, with the job's next number and what is told of this one's failures; where the job
        does not go on, one that is `skipped`.
        A job whose last open chunk it was is `finalizing`, or stays `cancelling`, without a holder;
        with `hold` it is claimed to be finished at once.
        A chunk of a job that is being cancelled is completed with the rows that were run.

        Raises:
            ValueError: the rest is not the end of the chunk, or `result` has other rows than are
                ahead of it.
        """
        ...

    async def release_chunk(self, claim: Claim, *, story: str = "", delay_s: float = 0.0) -> bool:
        """Hand a chunk back: `waiting`, for `delay_s` at least; of a cancelled job, `skipped`.

        With a story it has failed once more. False: the lease is lost.
        """
        ...

    async def release_overdue(self, limit: int) -> Sequence[Overdue]:
        """Let go of chunks whose leases are over: each has failed once more and is waiting.

        Before, the leases and delays that were written by a clock which was put back since, of
        chunks and of jobs, begin anew.
        """
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
        """Every chunk of a job, in the order of its file, without holding them all.

        Their numbers have another order: a rest has the next one that was free.
        """
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
