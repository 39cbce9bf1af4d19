"""The port `JobStore` in memory, with a clock that is handed in and gates for simulations."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeAlias, TypeVar

import msgspec

from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, ChunkState, Claim, Span
from headrace.domain.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    StoreUnavailable,
)
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.domain.jobs import FINAL, Counts, FileProblem, Job
from headrace.ports.job_store import (
    ANY_SIZE,
    NO_QUOTAS,
    Backlog,
    ClaimedChunk,
    Completed,
    Hold,
    JobClaim,
    Overdue,
    PageQuery,
    Quotas,
    Used,
)
from tests.support.idempotency import MemoryIdempotencyStore

#: Awaited with the name of an operation.
Gate: TypeAlias = Callable[[str], Awaitable[None]]

_STORIES: Final = 5  # of a chunk that are kept
_PLACES_BACK_S: Final = 1e9  # of jobs to be planned
_FIRST: Final = -1e12  # place of those to be finished
_HARMLESS_S: Final = 1.0  # that the clock may go back without anything beginning anew
_numbers = itertools.count(1)
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
        "patience",
        "queued_at",
        "queued_by",
        "ref",
        "result",
        "since",
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
        self.patience = 1
        self.not_before = 0.0
        self.since = 0.0

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

    def begin_anew(self, now: float) -> bool:
        """Whether its times are of a clock that was put back since; then they begin now."""
        ahead = self.since - now
        if ahead <= _HARMLESS_S:
            return False
        self.until -= ahead
        self.queued_at -= ahead
        self.not_before -= ahead
        self.since = now
        return True


class _KeptJob:
    """One job, its chunks, and what the port does not show of it."""

    def __init__(self, job: Job, at: float) -> None:
        self.job = job
        self.created = at
        self.is_planned = False
        self.failures = 0
        self.place = 0.0  # in its tenant's line to be planned
        self.line = 0.0  # who is before whom to be planned or finished
        self.holder = ""
        self.attempt = 0
        self.until = 0.0
        self.since = 0.0
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
    def is_ended_unplanned(self) -> bool:
        """Whether there is nothing to plan of it any more."""
        return not self.is_planned and self.job.ending != "completed"

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
        stamps = msgspec.structs.astuple(self.job.timeline)
        times = {f"{state}_at": max(int(at), *(stamp or 0 for stamp in stamps))}
        timeline = msgspec.structs.replace(self.job.timeline, **times)
        return self.change(state=state, timeline=timeline, **fields)

    def add(self, spans: Sequence[Span], first: int) -> None:
        """Add chunks. Raises ValueError where there is a gap before them."""
        if first > len(self.chunks):
            msg = f"{self.job.id} has {len(self.chunks)} chunks, and {first} is not the next"
            raise ValueError(msg)
        del self.chunks[first:]  # of a planning before, or of an answer that was lost
        id_ = self.job.id
        self.chunks += [_KeptChunk(ChunkRef(id_, n), s) for n, s in enumerate(spans, first)]

    def split(self, chunk: _KeptChunk, result: ChunkResult, rest: Span) -> None:
        """Make a chunk of what is left of another. Raises ValueError where it is not that."""
        span = chunk.span
        rows = span.rows - rest.rows
        is_its_end = span.start < rest.start < rest.end == span.end
        is_told = rows == result.completed + result.failed
        if not is_its_end or not is_told or rest.first_line <= span.first_line:
            msg = f"{rest} is not what is left of {chunk.shown()} behind {result}"
            raise ValueError(msg)
        chunk.span = msgspec.structs.replace(span, end=rest.start, rows=rows)
        new = _KeptChunk(ChunkRef(self.job.id, len(self.chunks)), rest)
        new.failures, new.story = chunk.failures, chunk.story
        self.chunks.append(new)
        if self.goes_on:
            heapq.heappush(self.ready, new.ref.index)
        else:
            new.state = "skipped"

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
        self.name = f"memory-{next(_numbers)}"
        self.files: dict[str, dict[str, File]] = {}  # by tenant and id, in the order of creation
        self.expiring: list[tuple[float, str, str]] = []  # of files: when, tenant, id
        self.users: dict[str, int] = {}  # by an object's key: files, and jobs that have not ended
        self.garbage: dict[str, None] = {}
        self.jobs: dict[str, _KeptJob] = {}
        self.by_tenant: dict[str, dict[str, _KeptJob]] = {}
        self.open: dict[str, _KeptJob] = {}  # that have not ended
        self.queued: dict[ChunkRef, _KeptChunk] = {}
        self.running: dict[ChunkRef, _KeptChunk] = {}
        self.turn = 0.0  # of whichever tenant was last given something
        self.turns: dict[str, float] = {}  # of tenants
        self.job_turns: dict[str, float] = {}  # where new jobs begin, by tenant


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
    def add_file(self, file: File, *, quotas: Quotas = NO_QUOTAS, once: Once | None = None) -> File:
        if any(file.id in files for files in self._kept.files.values()):
            raise AlreadyExists(f"there is a file {file.id!r} already")
        quotas.require_file(self._used(file.tenant), file.size_bytes)
        self._carry_out(once)
        return self._add_file(file)

    @_operation
    def used(self, tenant: str) -> Used:
        return self._used(tenant)

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

    @_operation
    def needed(self, objects: Mapping[str, str]) -> frozenset[str]:
        self._expire_files()
        open_jobs = self._kept.open
        return frozenset(
            key for key, job in objects.items() if key in self._kept.users or job in open_jobs
        )

    @_operation
    def database(self) -> str:
        return self._kept.name

    # --- jobs ------------------------------------------------------------------------------------

    @_operation
    def create_job(
        self,
        job: Job,
        *,
        quotas: Quotas = NO_QUOTAS,
        once: Once | None = None,
        hold: Hold | None = None,
    ) -> Job:
        if job.id in self._kept.jobs:
            raise AlreadyExists(f"there is a job {job.id!r} already")
        self._file(job.tenant, job.input_file)
        quotas.require_job(self._used(job.tenant), job.input_bytes)
        self._carry_out(once)
        now = self._now()
        timeline = msgspec.structs.replace(job.timeline, created_at=int(now))
        kept = _KeptJob(job, now)
        kept.change(timeline=timeline, expires_at=int(now) + job.window_s)
        self._kept.jobs[job.id] = self._kept.open[job.id] = kept
        self._kept.by_tenant.setdefault(job.tenant, {})[job.id] = kept
        self._hold(job.input_key)
        kept.place = kept.line = self._place(kept)
        if hold is not None:
            self._claim(kept, hold)
        return kept.job

    @_operation
    def job(self, tenant: str, id_: str) -> Job:
        return self._job(tenant, id_).job

    @_operation
    def jobs(self, query: PageQuery) -> Sequence[Job]:
        of_tenant = self._kept.by_tenant.get(query.tenant, {})
        wanted = self._kept.jobs if query.everybody else of_tenant
        found = {id_: kept.job for id_, kept in wanted.items()}
        return _page(found, query, lambda job: not query.state or job.state == query.state)

    @_operation
    def cancel_job(self, tenant: str, id_: str) -> Job:
        kept = self._job(tenant, id_)
        if kept.job.state in FINAL or kept.job.ending != "completed":
            return kept.job  # rows may have been told as expired: how it ends stays
        open_chunks = kept.job.open_chunks
        if kept.is_planned:
            open_chunks -= self._skip(kept)
        else:
            kept.line = _FIRST
        if kept.is_planned:
            kept.line = self._number_to_finish(kept)
        return kept.enter("cancelling", self._now(), ending="cancelled", open_chunks=open_chunks)

    # --- planning and finishing ------------------------------------------------------------------

    @_operation
    def claim_job(
        self, holder: str, lease_s: float, *, most_bytes: int = ANY_SIZE
    ) -> JobClaim | None:
        now = self._now()
        free = [
            kept
            for kept in self._kept.open.values()
            if kept.is_for_somebody
            and not (kept.holder and kept.until > now)
            and (kept.job.input_bytes <= most_bytes or kept.is_ended_unplanned)
        ]
        if not free:
            return None
        return self._claim(min(free, key=lambda kept: kept.line), Hold(holder, lease_s))

    @_operation
    def renew_job(self, claim: JobClaim, lease_s: float, *, failed: bool = False) -> bool:
        kept = self._held(claim)
        if kept is not None:
            kept.failures += failed
            kept.since = self._now()
            kept.until = kept.line = kept.since + lease_s
        return kept is not None

    @_operation
    def release_job(self, claim: JobClaim) -> None:
        kept = self._held(claim)
        if kept is not None:
            kept.holder = ""
            kept.line = self._now()

    @_operation
    def add_chunks(self, claim: JobClaim, spans: Sequence[Span], *, first: int) -> bool:
        kept = self._held_to_plan(claim)
        if kept is None:
            return False
        kept.add(spans, first)
        return True

    @_operation
    def planned(
        self, claim: JobClaim, *, chunks: int, rows: int, spans: Sequence[Span] = ()
    ) -> Job | None:
        kept = self._held_to_plan(claim)
        if kept is None:
            return None
        before = kept.chunks.copy()
        if spans:
            kept.add(spans, chunks - len(spans))
        if chunks != len(kept.chunks) or rows != sum(c.span.rows for c in kept.chunks):
            kept.chunks = before
            msg = f"{kept.job.id} has other chunks or rows than {chunks} and {rows}"
            raise ValueError(msg)
        kept.holder, kept.is_planned, kept.failures = "", True, 0
        kept.line = _FIRST
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
        self,
        claim: JobClaim,
        *,
        output: File | None,
        errors: File | None,
        rows_failed: int,
        problems: Sequence[FileProblem] = (),
    ) -> Job | None:
        kept = self._held_to_finish(claim)
        if kept is None:
            return None
        for file in (output, errors):
            if file is not None:
                self._add_file(file)
        ended = self._end_job(
            kept,
            "failed" if problems else kept.job.ending,
            problems=tuple(problems),
            output_file=output.id if output is not None else "",
            error_file=errors.id if errors is not None else "",
            counts=msgspec.structs.replace(kept.job.counts, failed=rows_failed),
        )
        if kept.chunks:
            self._kept.garbage[f"batch/jobs/{kept.job.id}/"] = None
        return ended

    # --- chunks ----------------------------------------------------------------------------------

    @_operation
    def queue_chunks(
        self, *, by: str, window: int, shared: bool, expected: bool = False
    ) -> Sequence[Chunk]:
        del expected  # every look is cheap
        now = self._now()
        room = window - self._under_way(None if shared else by)
        if room <= 0:
            return []
        # who was away begins where the others are
        lines: dict[str, list[tuple[float, int, _KeptJob]]] = {}
        for n, kept in enumerate(self._kept.open.values()):
            if kept.goes_on and kept.next(now) is not None:
                turn = max(kept.turn, self._kept.job_turns.get(kept.job.tenant, 0.0))
                lines.setdefault(kept.job.tenant, []).append((turn, n, kept))
        tenants = [
            (max(self._kept.turns.get(tenant, 0.0), self._kept.turn), line[0][1], tenant)
            for tenant, line in lines.items()
        ]
        heapq.heapify(tenants)
        for line in lines.values():
            heapq.heapify(line)
        queued: list[Chunk] = []
        while tenants and len(queued) < room:
            self._kept.turn, first, tenant = tenants[0]
            line = lines[tenant]
            turn, n, kept = line[0]
            chunk = kept.next(now)
            if chunk is None:
                heapq.heappop(line)
                if not line:
                    heapq.heappop(tenants)
                continue
            self._queue(chunk, by, now)
            queued.append(chunk.shown())
            self._kept.job_turns[tenant] = turn
            # a doubled share for 5 of priority, among a tenant's own: the least has a sixteenth
            kept.turn = turn + 2.0 ** (-kept.job.priority / 5)
            heapq.heapreplace(line, (kept.turn, n, kept))
            self._kept.turns[tenant] = self._kept.turn + 1
            heapq.heapreplace(tenants, (self._kept.turns[tenant], first, tenant))
        return queued

    @_operation
    def requeue(self, *, by: str, older_than_s: float, most_patience: int = 1) -> Sequence[Chunk]:
        now = self._now()
        old = [
            chunk
            for chunk in self._kept.queued.values()
            if chunk.queued_at <= now - older_than_s * chunk.patience
        ]
        for chunk in old:
            patience = chunk.patience
            self._queue(chunk, by, now)
            chunk.patience = patience * 2 if patience < most_patience else patience
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
        chunk.since = now
        chunk.attempt += 1
        return ClaimedChunk(Claim(ref, chunk.attempt, holder), chunk.shown(), kept.job)

    @_operation
    def renew_chunks(self, claims: Sequence[Claim], lease_s: float) -> frozenset[Claim]:
        now = self._now()
        live: list[Claim] = []
        for claim in claims:
            chunk = self._worked_on(claim)
            if chunk is not None:
                chunk.until, chunk.since = now + lease_s, now
                if self._kept.jobs[claim.ref.job].goes_on:
                    live.append(claim)
        return frozenset(live)

    @_operation
    def complete_chunk(
        self,
        claim: Claim,
        result: ChunkResult,
        rest: Span | None = None,
        *,
        hold: Hold | None = None,
    ) -> Completed | None:
        chunk = self._worked_on(claim)
        if chunk is None:
            return None
        kept = self._kept.jobs[claim.ref.job]
        if rest is not None:
            kept.split(chunk, result, rest)
        del self._kept.running[claim.ref]
        chunk.state, chunk.holder, chunk.result = "done", "", result
        counts = msgspec.structs.replace(
            kept.job.counts,
            completed=kept.job.counts.completed + result.completed,
            failed=kept.job.counts.failed + result.failed,
        )
        chunks = len(kept.chunks)
        if rest is not None and kept.goes_on:  # one is open for the one that was
            kept.change(counts=counts, chunks=chunks)
        else:
            self._close_chunk(kept, counts=counts, chunks=chunks)
        if hold is None or kept.job.open_chunks:
            return Completed()
        known = (chunk.shown(),) if kept.job.chunks == 1 else ()
        return Completed(msgspec.structs.replace(self._claim(kept, hold), chunks=known))

    @_operation
    def release_chunk(self, claim: Claim, *, story: str = "", delay_s: float = 0.0) -> bool:
        chunk = self._worked_on(claim)
        if chunk is not None:
            self._hand_back(chunk, story, delay_s)
        return chunk is not None

    @_operation
    def release_overdue(self, limit: int) -> Sequence[Overdue]:
        now = self._now()
        self._begin_anew(now)
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
                kept.line = self._number_to_finish(kept)
                kept.enter("finalizing", now, ending="expired", open_chunks=0)
            else:
                kept.change(ending="expired", open_chunks=open_chunks)
                kept.line = kept.line if kept.is_planned else _FIRST
        return [kept.job for kept in over]

    async def chunks(self, job: str) -> AsyncIterator[Chunk]:
        await self.begin("chunks")
        kept = self._kept.jobs.get(job)
        chunks = kept.chunks if kept is not None else ()
        for chunk in sorted(chunks, key=lambda chunk: chunk.span.start):
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
            oldest_s=max((0.0, *(self._now() - kept.created for kept in jobs))),
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

    def _used(self, tenant: str) -> Used:
        self._expire_files()
        jobs = [kept.job for kept in self._kept.open.values() if kept.job.tenant == tenant]
        files = self._kept.files.get(tenant, {}).values()
        return Used(
            jobs=len(jobs),
            rows_bytes=sum(job.input_bytes for job in jobs),
            files=len(files),
            stored_bytes=sum(file.size_bytes for file in files),
        )

    def _number_to_finish(self, new: _KeptJob) -> float:
        """Behind its tenant's jobs that are to be finished, and ahead of all that are not."""
        beside = [
            kept
            for kept in self._kept.open.values()
            if kept is not new and kept.is_planned and not kept.job.open_chunks
        ]
        return _FIRST + sum(kept.job.tenant == new.job.tenant for kept in beside)

    def _place(self, new: _KeptJob) -> float:
        """Behind its tenant's jobs, by the time that these take to be planned; in the far past."""
        present = self._now() - _PLACES_BACK_S
        tenant = new.job.tenant
        ahead = [
            kept.place
            for kept in self._kept.open.values()
            if kept is not new and not kept.is_planned and kept.job.tenant == tenant
        ]
        return max(present, *ahead, present) + 0.01 + new.job.input_bytes / 10_000_000

    def _held(self, claim: JobClaim) -> _KeptJob | None:
        kept = self._kept.jobs.get(claim.job.id)
        mine = kept is not None and (kept.holder, kept.attempt) == (claim.holder, claim.attempt)
        return kept if mine else None

    def _held_to_plan(self, claim: JobClaim) -> _KeptJob | None:
        kept = self._held(claim)
        return kept if kept is not None and not kept.is_planned else None

    def _claim(self, kept: _KeptJob, hold: Hold) -> JobClaim:
        kept.since = self._now()
        kept.holder, kept.until = hold.holder, kept.since + hold.lease_s
        kept.line = kept.until
        kept.attempt += 1
        to: Literal["plan", "finish"] = "finish" if kept.is_planned else "plan"
        return JobClaim(kept.job, kept.attempt, hold.holder, to, failures=kept.failures)

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
        chunk.patience, chunk.since = 1, now
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
            chunk.since = self._now()
            kept.wait(chunk, chunk.since + delay_s)
        else:
            chunk.state = "skipped"
            self._close_chunk(kept)

    def _begin_anew(self, now: float) -> None:
        """What the clock wrote before it was put back."""
        for kept in self._kept.open.values():
            if kept.since > now + _HARMLESS_S:
                kept.until += now - kept.since
                kept.since = now
            delayed = [kept.chunks[number] for _, number in kept.delayed]
            for chunk in [c for c in delayed if c.state == "waiting"]:
                if chunk.begin_anew(now):
                    kept.wait(chunk, chunk.not_before)
        for chunk in [*self._kept.running.values(), *self._kept.queued.values()]:
            chunk.begin_anew(now)

    def _close_chunk(self, kept: _KeptJob, **fields: Any) -> None:
        """One of its chunks has its outcome."""
        open_chunks = kept.job.open_chunks - 1
        if not open_chunks:
            kept.line = self._number_to_finish(kept)
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
