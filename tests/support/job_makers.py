"""Files, jobs and chunks for tests, with what a test does not care about filled in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, Part, Span
from headrace.domain.files import File
from headrace.domain.jobs import FINAL, Job, Target
from headrace.ports.job_store import ClaimedChunk, Hold, JobClaim, JobStore

TENANT: Final = "acme"
#: Longer than any test takes.
LONG_S: Final = 600.0
_ROW_BYTES: Final = 100
_numbers = itertools.count(1)


def file(**fields: Any) -> File:
    """A file; ids grow with each."""
    number = next(_numbers)
    given: dict[str, Any] = {
        "id": f"file-{number:026}",
        "tenant": TENANT,
        "purpose": "batch",
        "filename": "rows.jsonl",
        "size_bytes": 1000,
        "key": f"batch/files/{number}",
    }
    return File(**{**given, **fields})


def job(of: File, **fields: Any) -> Job:
    """A job that reads a file; ids grow with each."""
    given: dict[str, Any] = {
        "id": f"batch_{next(_numbers):026}",
        "tenant": of.tenant,
        "principal": "ann",
        "target": Target(url="/v2/models/mlp/infer", model="mlp"),
        "input_file": of.id,
        "input_key": of.key,
        "input_bytes": of.size_bytes,
        "window_s": 86_400,
        "completion_window": "24h",
    }
    return Job(**{**given, **fields})


def spans(count: int, rows: int = 10, *, first: int = 0) -> list[Span]:
    """`count` chunks of `rows` rows each, from the number `first`."""
    size = rows * _ROW_BYTES
    return [Span(n * size, (n + 1) * size, n * rows + 1, rows) for n in range(first, first + count)]


def result(rows: int = 10, *, failed: int = 0) -> ChunkResult:
    """What became of a chunk of `rows` rows."""
    return ChunkResult(completed=rows - failed, failed=failed)


def parts(claim_of: ClaimedChunk, *, failed: int = 0) -> ChunkResult:
    """The same, with the objects that were written under that claim."""
    ref, attempt = claim_of.claim.ref, claim_of.claim.attempt
    rows = claim_of.chunk.span.rows
    folder = f"batch/jobs/{ref.job}/{ref.index:08}/{attempt}"
    return ChunkResult(
        completed=rows - failed,
        failed=failed,
        output=Part(f"{folder}/output.jsonl", 1000),
        errors=Part(f"{folder}/errors.jsonl", 100) if failed else Part(),
    )


async def created(
    store: JobStore, *, tenant: str = TENANT, hold: Hold | None = None, **fields: Any
) -> Job:
    """A job that is in the store, with its file."""
    source = await store.add_file(file(tenant=tenant))
    return await store.create_job(job(source, **fields), hold=hold)


async def claimed_job(
    store: JobStore, holder: str = "planner", lease_s: float = LONG_S
) -> JobClaim:
    """The job that is to be planned or finished next; there is one."""
    claim = await store.claim_job(holder, lease_s)
    assert claim is not None, "no job is to be planned or finished"
    return claim


async def planned(store: JobStore, *, chunks: int = 3, rows: int = 10, **fields: Any) -> Job:
    """A job in progress. No other may be waiting to be planned or finished."""
    new = await created(store, **fields)
    claim = await claimed_job(store)
    assert claim.job.id == new.id, f"{claim.job.id} is in the way"
    assert await store.add_chunks(claim, spans(chunks, rows), first=0)
    job = await store.planned(claim, chunks=chunks, rows=chunks * rows)
    assert job is not None
    return job


async def claimed(
    store: JobStore, job: Job, index: int = 0, holder: str = "worker", lease_s: float = LONG_S
) -> ClaimedChunk:
    """A chunk in the hands of `holder`."""
    claim = await store.claim_chunk(ChunkRef(job.id, index), holder, lease_s)
    assert claim is not None, f"chunk {index} of {job.id} cannot be claimed"
    return claim


async def run(store: JobStore, refs: Iterable[ChunkRef], *, failed: int = 0) -> None:
    """Claim and complete chunks, each with so many failed rows."""
    for ref in refs:
        claim = await store.claim_chunk(ref, "worker", LONG_S)
        assert claim is not None, f"{ref} cannot be claimed"
        assert await store.complete_chunk(claim.claim, parts(claim, failed=failed))


async def chunks_of(store: JobStore, job: Job) -> list[Chunk]:
    return [chunk async for chunk in store.chunks(job.id)]


async def states_of(store: JobStore, job: Job) -> list[str]:
    return [chunk.state async for chunk in store.chunks(job.id)]


async def read(store: JobStore, job: Job) -> Job:
    """The job as it is by now."""
    return await store.job(job.tenant, job.id)


def indexes(queued: Sequence[Chunk], of: Job) -> list[int]:
    """The numbers of the chunks of one job among those that were queued."""
    return [chunk.ref.index for chunk in queued if chunk.ref.job == of.id]


async def finished(store: JobStore, claim: JobClaim, **fields: Any) -> Job | None:
    """Finish a job with its files, as its chunks tell."""
    id_ = claim.job.id
    failed = 0
    async for chunk in store.chunks(id_):
        failed += chunk.span.rows if chunk.result is None else chunk.result.failed
    output = file(tenant=claim.job.tenant, purpose="batch_output", **fields)
    errors = file(tenant=claim.job.tenant, purpose="batch_output", **fields) if failed else None
    return await store.finish(claim, output=output, errors=errors, rows_failed=failed)


async def ended(store: JobStore, job: Job) -> Job:
    """Plan and finish whatever is to be, until the job has ended; no chunk of it may be open."""
    seen: set[str] = set()
    while (now := await read(store, job)).state not in FINAL:
        claim = await claimed_job(store, "finisher")
        fresh = claim.job.state == "validating" or (
            claim.job.state == "cancelling" and not claim.job.chunks
        )
        if fresh and claim.job.id not in seen:
            seen.add(claim.job.id)
            assert await store.add_chunks(claim, [], first=0)
            await store.planned(claim, chunks=0, rows=0)
        else:
            await finished(store, claim)
    return now
