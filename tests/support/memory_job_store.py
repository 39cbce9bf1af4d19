"""The port `JobStore` in memory, with a clock that is handed in and gates for simulations."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

import msgspec

from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, ChunkState, Claim, Span
from headrace.domain.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    StoreUnavailable,
    TenantBusy,
)
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.domain.jobs import FINAL, Counts, FileProblem, Job
from headrace.ports.job_store import (
    NO_QUOTAS,
    Backlog,
    ClaimedChunk,
    JobClaim,
    Overdue,
    PageQuery,
    Quotas,
)
from tests.support.idempotency import MemoryIdempotencyStore

#: Awaited with the name of an operation.
Gate: TypeAlias = Callable[[str], Awaitable[None]]

_STORIES: Final = 5  # of a chunk that are kept
_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item", File, Job)


class _KeptChunk:
    """One chunk, and what the port does not show of it."""

    __slots__ = (
        "attempt",
        "failures",
        "holder",
        "not_before",
        "queued_at",
        "queued_by",
        "ref",
        "result",
        "span",
        "state",
        "story",
        "until",
    )

    def __init__(self, ref: ChunkRef, span: Span) -> None:
        self.ref = ref
        self.span = span
        self.state: ChunkState = "waiting"
        self.attempt = 0
        self.failures = 0
        self.story: tuple[str, ...] = ()
        self.result: ChunkResult | None = None
        self.holder = ""
        self.until = 0.0
        self.queued_by = ""
        self.queued_at = 0.0
        self.not_before = 0.0

    def shown(self) -> Chunk:
        return Chunk(
            ref=self.ref,
            span=self.span,
            state=self.state,
            attempt=self.attempt,
            failures=self.failures,
            story=self.story,
            result=self.result,
        )

    def fail(self, story: str) -> None:
        self.failures += 1
        self.story = (*self.story, story)[-_STORIES:]


class _KeptJob:
    """One job, its chunks, and what the port does not show of it."""

    def __init__(self, job: Job, at: float) -> None:
        self.job = job
        self.created = at
        self.is_planned = False
        self.holder = ""
        self.attempt = 0
        self.until = 0.0
        self.chunks: list[_KeptChunk] = []
        # Numbers of waiting chunks; some are no longer, which shows when they come up.
        self.ready: list[int] = []
        self.delayed: list[tuple[float, int]] = []
        self.turn = 0.0  # how much it was given, by its weight

    @property
    def goes_on(self) -> bool:
        """Whether its chunks may be worked on."""
        return self.job.state == "in_progress" and self.job.ending == "completed"

    @property
    def is_for_somebody(self) -> bool:
        """Whether there is something to plan or to finish."""
        state = self.job.state
        if not self.is_planned:
            return state in {"validating", "cancelling"}
        return state in {"finalizing", "cancelling"} and not self.job.open_chunks

    def change(self, **fields: Any) -> Job:
        self.job = msgspec.structs.replace(self.job, **fields, revision=self.job.revision + 1)
        return self.job

    def enter(self, state: str, at: float, **fields: Any) -> Job:
        times = {f"{state}_at": int(at)}
        timeline = msgspec.structs.replace(self.job.timeline, **times)
        return self.change(state=state, timeline=timeline, **fields)

    def skip(self) -> int:
        """Skip what nobody works on; how many there were."""
        skipped = 0
        for chunk in self.chunks:
            if chunk.state in {"waiting", "queued"}:
                chunk.state = "skipped"
                skipped += 1
        return skipped

    def wait(self, chunk: _KeptChunk, not_before: float) -> None:
        """Let a chunk wait."""
        chunk.state, chunk.not_before = "waiting", not_before
        heapq.heappush(self.delayed, (not_before, chunk.ref.index))

    def next(self, now: float) -> _KeptChunk | None:
        """The first chunk that may be queued."""
        while self.delayed and self.delayed[0][0] <= now:
            heapq.heappush(self.ready, heapq.heappop(self.delayed)[1])
        while self.ready:
            chunk = self.chunks[self.ready[0]]
            if chunk.state == "waiting" and chunk.not_before <= now:
                return chunk
            heapq.heappop(self.ready)
        return None


class _Kept:
    """All that stores beside each other share."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, File]] = {}  # by tenant and id, in the order of creation
        self.expiring: list[tuple[float, str, str]] = []  # of files: when, tenant, id
        self.users: dict[str, int] = {}  # by an object's key: files, and jobs that have not ended
        self.garbage: dict[str, None] = {}
        self.jobs: dict[str, _KeptJob] = {}
        self.by_tenant: dict[str, dict[str, _KeptJob]] = {}
        self.open: dict[str, _KeptJob] = {}  # that have not ended
        self.queued: dict[ChunkRef, _KeptChunk] = {}
        self.running: dict[ChunkRef, _KeptChunk] = {}
        self.turn = 0.0  # of whichever job was last given something


def _operation(
    effect: Callable[Concatenate[MemoryJobStore, _P], _T],
) -> Callable[Concatenate[MemoryJobStore, _P], Coroutine[Any, Any, _T]]:
    """What happens at once, between the gates and after others had a turn."""
    name = effect.__name__

    async def run(self: MemoryJobStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        await self.begin(name)
        found = effect(self, *args, **kwargs)
        await self.end(name)
        return found

    return run


class MemoryJobStore:
    """A store that lives as long as the object. `now` answers seconds since 1970.

    `beside` is a store to share all that is kept with, as another process would: it has gates of
    its own. `keys` are the idempotency keys of the same database. For tests: `gate`, where there is
    one, is awaited by every operation with its name before the operation looks at anything, and
    `after_gate` when all is done and before the caller knows: a process that is killed there, or
    told that the store does not answer, cannot tell the two apart. `calls` counts by name.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        beside: MemoryJobStore | None = None,
        keys: MemoryIdempotencyStore | None = None,
        gate: Gate | None = None,
        after_gate: Gate | None = None,
    ) -> None:
        self.gate = gate
        self.after_gate = after_gate
        self.calls: dict[str, int] = {}
        self._now = now
        self._kept: _Kept = _Kept() if beside is None else beside._kept  # noqa: SLF001 - its own kind
        self._keys: MemoryIdempotencyStore
        if beside is None:
            self._keys = keys or MemoryIdempotencyStore()
        else:
            self._keys = beside._keys  # noqa: SLF001 - as above
        self._closed = False

    # --- files -----------------------------------------------------------------------------------

    @_operation
    def add_file(self, file: File, *, once: Once | None = None) -> File:
        if any(file.id in files for files in self._kept.files.values()):
            raise AlreadyExists(f"there is a file {file.id!r} already")
        self._carry_out(once)
        return self._add_file(file)

    @_operation
    def file(self, tenant: str, id_: str) -> File:
        return self._file(tenant, id_)

    @_operation
    def files(self, query: PageQuery) -> Sequence[File]:
        self._expire_files()
        found = self._kept.files.get(query.tenant, {})
        return _page(found, query, lambda file: not query.purpose or file.purpose == query.purpose)

    @_operation
    def delete_file(self, tenant: str, id_: str) -> None:
        file = self._file(tenant, id_)
        for kept in self._kept.open.values():
            if kept.job.tenant == tenant and kept.job.input_file == id_:
                raise Conflict(f"{kept.job.id} reads {id_}: cancel it, or wait until it has ended")
        del self._kept.files[tenant][id_]
        self._let_go(file.key)

    @_operation
    def take_garbage(self, limit: int) -> Sequence[str]:
        self._expire_files()
        return list(itertools.islice(self._kept.garbage, limit))

    @_operation
    def removed(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._kept.garbage.pop(key, None)

    # --- jobs ------------------------------------------------------------------------------------

    @_operation
    def create_job(self, job: Job, *, quotas: Quotas = NO_QUOTAS, once: Once | None = None) -> Job:
        if job.id in self._kept.jobs:
            raise AlreadyExists(f"there is a job {job.id!r} already")
        self._file(job.tenant, job.input_file)
        self._require_room(job, quotas)
        self._carry_out(once)
        now = self._now()
        timeline = msgspec.structs.replace(job.timeline, created_at=int(now))
        kept = _KeptJob(job, now)
        kept.change(timeline=timeline, expires_at=int(now) + job.window_s)
        self._kept.jobs[job.id] = self._kept.open[job.id] = kept
        self._kept.by_tenant.setdefault(job.tenant, {})[job.id] = kept
        self._hold(job.input_key)
        return kept.job

    @_operation
    def job(self, tenant: str, id_: str) -> Job:
        return self._job(tenant, id_).job

    @_operation
    def jobs(self, query: PageQuery) -> Sequence[Job]:
        of_tenant = self._kept.by_tenant.get(query.tenant, {})
        found = {id_: kept.job for id_, kept in of_tenant.items()}
        return _page(found, query, lambda job: not query.state or job.state == query.state)

    @_operation
    def cancel_job(self, tenant: str, id_: str) -> Job:
        kept = self._job(tenant, id_)
        if kept.job.state in FINAL or kept.job.state == "cancelling":
            return kept.job
        # rows may have been told as expired already: how they end does not change any more
        ending = "cancelled" if kept.job.ending == "completed" else kept.job.ending
        open_chunks = kept.job.open_chunks
        if kept.is_planned:
            open_chunks -= self._skip(kept)
        return kept.enter("cancelling", self._now(), ending=ending, open_chunks=open_chunks)

    # --- planning and finishing ------------------------------------------------------------------

    @_operation
    def claim_job(self, holder: str, lease_s: float) -> JobClaim | None:
        now = self._now()
        for kept in self._kept.open.values():
            if kept.is_for_somebody and not (kept.holder and kept.until > now):
                kept.holder, kept.until = holder, now + lease_s
                kept.attempt += 1
                return JobClaim(
                    kept.job, kept.attempt, holder, "finish" if kept.is_planned else "plan"
                )
        return None

    @_operation
    def renew_job(self, claim: JobClaim, lease_s: float) -> bool:
        kept = self._held(claim)
        if kept is not None:
            kept.until = self._now() + lease_s
        return kept is not None

    @_operation
    def release_job(self, claim: JobClaim) -> None:
        kept = self._held(claim)
        if kept is not None:
            kept.holder = ""

    @_operation
    def add_chunks(self, claim: JobClaim, spans: Sequence[Span], *, first: int) -> bool:
        kept = self._held_to_plan(claim)
        if kept is None:
            return False
        if first > len(kept.chunks):
            msg = f"{kept.job.id} has {len(kept.chunks)} chunks, and {first} is not the next"
            raise ValueError(msg)
        del kept.chunks[first:]  # of a planning before, or of an answer that was lost
        id_ = kept.job.id
        kept.chunks += [_KeptChunk(ChunkRef(id_, n), s) for n, s in enumerate(spans, first)]
        return True

    @_operation
    def planned(self, claim: JobClaim, *, chunks: int, rows: int) -> Job | None:
        kept = self._held_to_plan(claim)
        if kept is None:
            return None
        if chunks != len(kept.chunks) or rows != sum(c.span.rows for c in kept.chunks):
            msg = f"{kept.job.id} has other chunks or rows than {chunks} and {rows}"
            raise ValueError(msg)
        kept.holder, kept.is_planned = "", True
        now = self._now()
        known: dict[str, Any] = {"chunks": chunks, "counts": Counts(total=rows)}
        if kept.job.ending != "completed":
            kept.skip()
            if kept.job.state == "cancelling":
                return kept.change(**known)
            return kept.enter("finalizing", now, **known)
        if not chunks:
            return kept.enter("finalizing", now, **known)
        kept.ready = list(range(chunks))
        return kept.enter("in_progress", now, **known, open_chunks=chunks)

    @_operation
    def refuse(self, claim: JobClaim, problems: Sequence[FileProblem]) -> Job | None:
        kept = self._held_to_plan(claim)
        if kept is None:
            return None
        kept.chunks.clear()
        return self._end_job(kept, "failed", problems=tuple(problems))

    @_operation
    def finish(
        self, claim: JobClaim, *, output: File | None, errors: File | None, rows_failed: int
    ) -> Job | None:
        kept = self._held_to_finish(claim)
        if kept is None:
            return None
        for file in (output, errors):
            if file is not None:
                self._add_file(file)
        ended = self._end_job(
            kept,
            kept.job.ending,
            output_file=output.id if output is not None else "",
            error_file=errors.id if errors is not None else "",
            counts=msgspec.structs.replace(kept.job.counts, failed=rows_failed),
        )
        if kept.chunks:
            self._kept.garbage[f"batch/jobs/{kept.job.id}/"] = None
        return ended

    # --- chunks ----------------------------------------------------------------------------------

    @_operation
    def queue_chunks(self, *, by: str, window: int, shared: bool) -> Sequence[Chunk]:
        now = self._now()
        room = window - self._under_way(None if shared else by)
        if room <= 0:
            return []
        turns = [
            (max(kept.turn, self._kept.turn), n, kept)  # who was away begins where the others are
            for n, kept in enumerate(self._kept.open.values())
            if kept.goes_on and kept.next(now) is not None
        ]
        heapq.heapify(turns)
        queued: list[Chunk] = []
        while turns and len(queued) < room:
            turn, n, kept = turns[0]
            chunk = kept.next(now)
            if chunk is None:
                heapq.heappop(turns)
                continue
            self._queue(chunk, by, now)
            queued.append(chunk.shown())
            self._kept.turn = turn
            # a doubled share for 5 of priority: the least has a sixteenth of the most
            kept.turn = turn + 2.0 ** (-kept.job.priority / 5)
            heapq.heapreplace(turns, (kept.turn, n, kept))
        return queued

    @_operation
    def requeue(self, *, by: str, older_than_s: float) -> Sequence[Chunk]:
        now = self._now()
        old = [c for c in self._kept.queued.values() if c.queued_at <= now - older_than_s]
        for chunk in old:
            self._queue(chunk, by, now)
        return [chunk.shown() for chunk in old]

    @_operation
    def claim_chunk(self, ref: ChunkRef, holder: str, lease_s: float) -> ClaimedChunk | None:
        now = self._now()
        kept, chunk = self._found(ref)
        if kept is None or chunk is None or not kept.goes_on:
            return None
        if chunk.state not in {"waiting", "queued"} or chunk.not_before > now:
            return None
        self._kept.queued.pop(ref, None)
        self._kept.running[ref] = chunk
        chunk.state, chunk.holder, chunk.until = "running", holder, now + lease_s
        chunk.attempt += 1
        return ClaimedChunk(Claim(ref, chunk.attempt, holder), chunk.shown(), kept.job)

    @_operation
    def renew_chunks(self, claims: Sequence[Claim], lease_s: float) -> frozenset[Claim]:
        until = self._now() + lease_s
        live: list[Claim] = []
        for claim in claims:
            chunk = self._worked_on(claim)
            if chunk is not None:
                chunk.until = until
                if self._kept.jobs[claim.ref.job].goes_on:
                    live.append(claim)
        return frozenset(live)

    @_operation
    def complete_chunk(self, claim: Claim, result: ChunkResult) -> bool:
        chunk = self._worked_on(claim)
        if chunk is None:
            return False
        del self._kept.running[claim.ref]
        chunk.state, chunk.holder, chunk.result = "done", "", result
        kept = self._kept.jobs[claim.ref.job]
        counts = kept.job.counts
        self._close_chunk(
            kept,
            counts=msgspec.structs.replace(
                counts,
                completed=counts.completed + result.completed,
                failed=counts.failed + result.failed,
            ),
        )
        return True

    @_operation
    def release_chunk(self, claim: Claim, *, story: str = "", delay_s: float = 0.0) -> bool:
        chunk = self._worked_on(claim)
        if chunk is not None:
            self._hand_back(chunk, story, delay_s)
        return chunk is not None

    @_operation
    def release_overdue(self, limit: int) -> Sequence[Overdue]:
        now = self._now()
        late = [c for c in self._kept.running.values() if c.until <= now]
        released: list[Overdue] = []
        for chunk in heapq.nsmallest(limit, late, key=lambda c: (c.until, c.ref)):
            holder = chunk.holder
            self._hand_back(chunk, f"{holder} was silent past its lease", 0.0)
            released.append(Overdue(chunk.shown(), holder))
        return released

    @_operation
    def bury_chunk(self, ref: ChunkRef, attempt: int) -> bool:
        kept, chunk = self._found(ref)
        if kept is None or chunk is None or not kept.is_planned or chunk.attempt != attempt:
            return False
        if chunk.state not in {"waiting", "queued"}:
            return False
        self._kept.queued.pop(ref, None)
        chunk.state = "dead"
        self._close_chunk(kept)
        return True

    @_operation
    def expire_jobs(self, limit: int) -> Sequence[Job]:
        now = self._now()
        # one that is finalizing has all its answers, and is only written down
        over = [
            kept
            for kept in self._kept.open.values()
            if kept.job.expires_at <= now
            and kept.job.ending == "completed"
            and kept.job.state in {"validating", "in_progress"}
        ][:limit]
        for kept in over:
            skipped = self._skip(kept) if kept.is_planned else 0
            open_chunks = kept.job.open_chunks - skipped
            if kept.is_planned and not open_chunks:
                kept.enter("finalizing", now, ending="expired", open_chunks=0)
            else:
                kept.change(ending="expired", open_chunks=open_chunks)
        return [kept.job for kept in over]

    async def chunks(self, job: str) -> AsyncIterator[Chunk]:
        await self.begin("chunks")
        kept = self._kept.jobs.get(job)
        for chunk in kept.chunks if kept is not None else ():
            yield chunk.shown()
        await self.end("chunks")

    @_operation
    def waiting(self) -> Backlog:
        jobs = self._kept.open.values()
        running = len(self._kept.running)
        return Backlog(
            jobs=len(jobs),
            chunks_waiting=sum(kept.job.open_chunks for kept in jobs) - running,
            chunks_running=running,
            oldest_s=max((self._now() - kept.created for kept in jobs), default=0.0),
        )

    async def close(self) -> None:
        self._closed = True

    # --- around every operation ------------------------------------------------------------------

    async def begin(self, name: str) -> None:
        """What comes before an operation's effect."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.gate is not None:
            await self.gate(name)
        await asyncio.sleep(0)  # no real store answers without giving others a turn
        if self._closed:
            raise StoreUnavailable("the store is closed")

    async def end(self, name: str) -> None:
        """What comes after it."""
        if self.after_gate is not None:
            await self.after_gate(name)

    # --- files and objects -----------------------------------------------------------------------

    def _add_file(self, file: File) -> File:
        added = msgspec.structs.replace(file, created_at=int(self._now()))
        self._kept.files.setdefault(file.tenant, {})[file.id] = added
        if added.expires_at is not None:
            heapq.heappush(self._kept.expiring, (added.expires_at, added.tenant, added.id))
        self._hold(added.key)
        return added

    def _file(self, tenant: str, id_: str) -> File:
        self._expire_files()
        found = self._kept.files.get(tenant, {}).get(id_)
        if found is None:
            raise NotFound(f"there is no file {id_!r}: upload it first")
        return found

    def _expire_files(self) -> None:
        expiring, now = self._kept.expiring, self._now()
        while expiring and expiring[0][0] <= now:
            _, tenant, id_ = heapq.heappop(expiring)
            file = self._kept.files[tenant].pop(id_, None)  # it may have been deleted
            if file is not None:
                self._let_go(file.key)

    def _hold(self, key: str) -> None:
        self._kept.users[key] = self._kept.users.get(key, 0) + 1
        self._kept.garbage.pop(key, None)

    def _let_go(self, key: str) -> None:
        self._kept.users[key] -= 1
        if not self._kept.users[key]:
            del self._kept.users[key]
            self._kept.garbage[key] = None

    # --- jobs and chunks -------------------------------------------------------------------------

    def _carry_out(self, once: Once | None) -> None:
        if once is not None:
            self._keys.carry_out(once)

    def _job(self, tenant: str, id_: str) -> _KeptJob:
        kept = self._kept.by_tenant.get(tenant, {}).get(id_)
        if kept is None:
            raise NotFound(f"there is no batch job {id_!r}: list the jobs to see those there are")
        return kept

    def _require_room(self, job: Job, quotas: Quotas) -> None:
        jobs = [kept.job for kept in self._kept.open.values() if kept.job.tenant == job.tenant]
        if quotas.jobs and len(jobs) >= quotas.jobs:
            raise TenantBusy(f"{len(jobs)} jobs have not ended: wait for one, or cancel one")
        size_bytes = sum(each.input_bytes for each in jobs) + job.input_bytes
        if quotas.rows_bytes and size_bytes > quotas.rows_bytes:
            raise TenantBusy(f"jobs would read {size_bytes} bytes: wait for one, or cancel one")

    def _held(self, claim: JobClaim) -> _KeptJob | None:
        kept = self._kept.jobs.get(claim.job.id)
        mine = kept is not None and (kept.holder, kept.attempt) == (claim.holder, claim.attempt)
        return kept if mine else None

    def _held_to_plan(self, claim: JobClaim) -> _KeptJob | None:
        kept = self._held(claim)
        return kept if kept is not None and not kept.is_planned else None

    def _held_to_finish(self, claim: JobClaim) -> _KeptJob | None:
        kept = self._held(claim)
        ready = kept is not None and kept.is_planned and not kept.job.open_chunks
        return kept if ready else None

    def _end_job(self, kept: _KeptJob, state: str, **fields: Any) -> Job:
        kept.holder = ""
        del self._kept.open[kept.job.id]
        self._let_go(kept.job.input_key)
        return kept.enter(state, self._now(), **fields)

    def _found(self, ref: ChunkRef) -> tuple[_KeptJob | None, _KeptChunk | None]:
        kept = self._kept.jobs.get(ref.job)
        if kept is None or not 0 <= ref.index < len(kept.chunks):
            return kept, None
        return kept, kept.chunks[ref.index]

    def _worked_on(self, claim: Claim) -> _KeptChunk | None:
        chunk = self._kept.running.get(claim.ref)
        mine = chunk is not None and (chunk.holder, chunk.attempt) == (claim.holder, claim.attempt)
        return chunk if mine else None

    def _under_way(self, by: str | None) -> int:
        """Chunks that are queued or running; those of one process alone."""
        queued, running = self._kept.queued, self._kept.running
        if by is None:
            return len(queued) + len(running)
        mine = sum(chunk.queued_by == by for chunk in queued.values())
        return mine + sum(chunk.holder == by for chunk in running.values())

    def _queue(self, chunk: _KeptChunk, by: str, now: float) -> None:
        chunk.state, chunk.queued_by, chunk.queued_at = "queued", by, now
        self._kept.queued[chunk.ref] = chunk

    def _skip(self, kept: _KeptJob) -> int:
        skipped = kept.skip()
        for ref in [ref for ref in self._kept.queued if ref.job == kept.job.id]:
            del self._kept.queued[ref]
        return skipped

    def _hand_back(self, chunk: _KeptChunk, story: str, delay_s: float) -> None:
        kept = self._kept.jobs[chunk.ref.job]
        del self._kept.running[chunk.ref]
        chunk.holder = ""
        if story:
            chunk.fail(story)
        if kept.goes_on:
            kept.wait(chunk, self._now() + delay_s)
        else:
            chunk.state = "skipped"
            self._close_chunk(kept)

    def _close_chunk(self, kept: _KeptJob, **fields: Any) -> None:
        """One of its chunks has its outcome."""
        open_chunks = kept.job.open_chunks - 1
        if open_chunks or kept.job.state == "cancelling":
            kept.change(open_chunks=open_chunks, **fields)
        else:
            kept.enter("finalizing", self._now(), open_chunks=0, **fields)


def _page(
    items: dict[str, _Item], query: PageQuery, is_wanted: Callable[[_Item], bool]
) -> list[_Item]:
    """Items are in the order of their creation."""
    ordered: Iterator[_Item] = iter(items.values() if query.ascending else reversed(items.values()))
    if query.after in items:
        ordered = itertools.dropwhile(lambda item: item.id != query.after, ordered)
        next(ordered)
    return list(itertools.islice(filter(is_wanted, ordered), query.limit + 1))
