"""A chunk that is completed ahead of its last rows: they become a chunk of their own."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from headrace.domain.chunks import ChunkRef, ChunkResult, Part, Span
from headrace.domain.jobs import Counts, Job
from headrace.ports.job_store import ClaimedChunk, Hold, JobStore
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make

_HOLD = Hold("hands", make.LONG_S)


def _rest(claimed: ClaimedChunk, rows: int) -> Span:
    """The last rows of a chunk, where each has as many bytes."""
    span = claimed.chunk.span
    done = span.rows - rows
    start = span.start + done * (span.end - span.start) // span.rows
    return Span(start, span.end, span.first_line + done, rows)


async def _split(store: JobStore, claimed: ClaimedChunk, left: int) -> None:
    done = claimed.chunk.span.rows - left
    assert await store.complete_chunk(claimed.claim, make.result(done), _rest(claimed, left))


async def test_the_rest_of_a_chunk_waits_and_the_rows_ahead_of_it_are_counted(
    store: JobStore,
) -> None:
    job = await make.planned(store, chunks=2)
    claimed = await make.claimed(store, job, 0)
    result = ChunkResult(completed=3, failed=1, output=Part("a", 5), errors=Part("b", 1))
    rest = _rest(claimed, 6)
    completed = await store.complete_chunk(claimed.claim, result, rest)
    assert completed is not None
    assert completed.claim is None

    after = await make.read(store, job)
    assert after.counts == Counts(20, 3, 1)
    assert (after.chunks, after.open_chunks, after.state) == (3, 2, "in_progress")
    assert after.revision > job.revision
    first, second, third = await make.chunks_of(store, job)
    assert (first.ref.index, first.state, first.result) == (0, "done", result)
    assert first.span == msgspec.structs.replace(make.spans(1)[0], end=rest.start, rows=4)
    assert (second.ref, second.state, second.attempt) == (ChunkRef(job.id, 2), "waiting", 0)
    assert (second.span, second.result, second.failures) == (rest, None, 0)
    assert third.span == make.spans(2)[1]


async def test_a_rest_is_queued_and_worked_on_at_once_and_ends_the_job(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=9, shared=True)
    await _split(store, await make.claimed(store, job), left=6)
    assert await store.claim_job("f", make.LONG_S) is None

    queued = await store.queue_chunks(by="p", window=9, shared=True)
    assert make.indexes(queued, job) == [1]
    claimed = await make.claimed(store, job, 1)
    assert (claimed.claim.attempt, claimed.job) == (1, await make.read(store, job))
    completed = await store.complete_chunk(claimed.claim, make.result(6, failed=2), hold=_HOLD)
    assert completed is not None
    assert completed.claim is not None
    assert not completed.claim.chunks  # there are two
    ended = await make.finished(store, completed.claim)
    assert ended is not None
    assert (ended.state, ended.counts) == ("completed", Counts(10, 8, 2))


async def test_rests_of_rests_stay_in_the_order_of_the_file(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    last = await make.claimed(store, job, 1)
    for index, left in enumerate((7, 4, 1), 2):
        await _split(store, last, left)
        last = await make.claimed(store, job, index)
    await _split(store, await make.claimed(store, job, 0), left=5)

    chunks = await make.chunks_of(store, job)
    assert [chunk.ref.index for chunk in chunks] == [0, 5, 1, 2, 3, 4]
    assert [chunk.span.first_line for chunk in chunks] == [1, 6, 11, 14, 17, 20]
    assert [chunk.span.rows for chunk in chunks] == [5, 5, 3, 3, 3, 1]
    ends = [0, *(chunk.span.end for chunk in chunks)]
    assert [chunk.span.start for chunk in chunks] == ends[:-1]


async def test_more_chunks_than_are_read_at_once_are_told_in_the_order_of_the_file(
    store: JobStore,
) -> None:
    new = await make.created(store)
    claim = await make.claimed_job(store)
    spans = make.spans(600, rows=2)
    assert await store.planned(claim, chunks=600, rows=1200, spans=spans)
    for index in (0, 499, 500, 599):
        await _split(store, await make.claimed(store, new, index), left=1)
    chunks = await make.chunks_of(store, new)
    assert len({chunk.ref for chunk in chunks}) == 604
    starts = [chunk.span.start for chunk in chunks]
    assert starts == sorted(starts)
    assert [chunk.ref.index for chunk in chunks[-2:]] == [599, 603]


async def test_a_rest_is_as_suspect_as_the_chunk_that_it_is_of(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    first = await make.claimed(store, job)
    await store.release_chunk(first.claim, story="it broke")
    await _split(store, await make.claimed(store, job), left=5)
    (queued,) = await store.queue_chunks(by="p", window=9, shared=True)
    assert (queued.ref.index, queued.failures, queued.story) == (1, 1, ("it broke",))
    assert queued.attempt == 0
    claimed = await make.claimed(store, job, 1)
    await store.release_chunk(claimed.claim, story="again")
    rest = (await make.chunks_of(store, job))[1]
    assert (rest.failures, rest.story) == (2, ("it broke", "again"))


async def test_who_lost_a_chunk_leaves_no_rest(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    lost = await make.claimed(store, job, holder="w1")
    await store.release_chunk(lost.claim)
    held = await make.claimed(store, job, holder="w2")
    before = await make.read(store, job), await make.chunks_of(store, job)
    assert not await store.complete_chunk(lost.claim, make.result(4), _rest(lost, 6))
    assert before == (await make.read(store, job), await make.chunks_of(store, job))

    await _split(store, held, left=6)
    after = await make.read(store, job), await make.chunks_of(store, job)
    assert not await store.complete_chunk(held.claim, make.result(4), _rest(held, 6))
    assert not await store.complete_chunk(held.claim, make.result())
    assert after == (await make.read(store, job), await make.chunks_of(store, job))


async def test_of_many_who_leave_a_rest_one_does(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=1)
    stores = [stage.store, await stage.another()]
    claimed = await make.claimed(stage.store, job)
    rest = _rest(claimed, 6)
    done = await asyncio.gather(
        *(stores[n % 2].complete_chunk(claimed.claim, make.result(4), rest) for n in range(8))
    )
    assert [each is not None for each in done].count(True) == 1
    after = await make.read(stage.store, job)
    assert (after.chunks, after.open_chunks, after.counts) == (2, 1, Counts(10, 4, 0))


async def test_rests_that_are_left_at_once_have_numbers_of_their_own(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=8)
    stores = [stage.store, await stage.another()]
    claims = [await make.claimed(stage.store, job, n) for n in range(8)]
    done = await asyncio.gather(
        *(
            stores[n % 2].complete_chunk(each.claim, make.result(4), _rest(each, 6))
            for n, each in enumerate(claims)
        )
    )
    assert all(done)
    chunks = await make.chunks_of(stage.store, job)
    assert sorted(chunk.ref.index for chunk in chunks) == list(range(16))
    after = await make.read(stage.store, job)
    assert (after.chunks, after.open_chunks, after.counts) == (16, 8, Counts(80, 32, 0))


@pytest.mark.parametrize("others", [0, 1])
async def test_the_rest_of_a_job_that_is_cancelled_is_skipped(store: JobStore, others: int) -> None:
    job = await make.planned(store, chunks=1 + others)
    claims = [await make.claimed(store, job, n) for n in range(1 + others)]
    await store.cancel_job("acme", job.id)
    await _split(store, claims[0], left=6)
    await _require_skipped(store, job, others, "cancelling")
    for claimed in claims[1:]:
        await _split(store, claimed, left=10 - 4)
    ended = await make.ended(store, job)
    done = 4 * (1 + others)
    total = 10 * (1 + others)
    assert (ended.state, ended.counts) == ("cancelled", Counts(total, done, total - done))


@pytest.mark.parametrize("others", [0, 1])
async def test_the_rest_of_a_job_that_expires_is_skipped(stage: Stage, others: int) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1 + others, window_s=1)
    claims = [await make.claimed(store, job, n) for n in range(1 + others)]
    await stage.lapse(2)
    assert await store.expire_jobs(10)
    await _split(store, claims[0], left=6)
    await _require_skipped(store, job, others, "in_progress" if others else "finalizing")
    for claimed in claims[1:]:
        await _split(store, claimed, left=6)
    assert (await make.read(store, job)).state == "finalizing"
    ended = await make.ended(store, job)
    assert ended.state == "expired"


async def _require_skipped(store: JobStore, job: Job, others: int, state: str) -> None:
    chunks = await make.chunks_of(store, job)
    assert [chunk.state for chunk in chunks] == ["done", "skipped", *["running"] * others]
    after = await make.read(store, job)
    assert (after.state, after.open_chunks, after.chunks) == (state, others, 2 + others)
    assert (after.timeline.finalizing_at is not None) == (state == "finalizing")
    assert not await store.queue_chunks(by="p", window=9, shared=True)


async def test_whoever_ends_a_cancelled_job_with_a_rest_may_finish_it(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    claimed = await make.claimed(store, job)
    await store.cancel_job("acme", job.id)
    rest = _rest(claimed, 6)
    completed = await store.complete_chunk(claimed.claim, make.result(4), rest, hold=_HOLD)
    assert completed is not None
    assert completed.claim is not None
    assert not completed.claim.chunks
    ended = await make.finished(store, completed.claim)
    assert ended is not None
    assert (ended.state, ended.counts) == ("cancelled", Counts(10, 4, 6))


async def test_a_rest_is_buried_as_a_chunk(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await _split(store, await make.claimed(store, job), left=6)
    assert await store.bury_chunk(ChunkRef(job.id, 1), 0)
    assert await make.states_of(store, job) == ["done", "dead"]
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("completed", Counts(10, 4, 6))


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (Span(400, 1000, 5, 6), 5),  # counted twice
        (Span(400, 1000, 5, 7), 4),
        (Span(0, 1000, 1, 6), 4),  # nothing is ahead of it
        (Span(1000, 1000, 5, 6), 4),
        (Span(400, 900, 5, 6), 4),  # bytes are lost
        (Span(400, 1100, 5, 6), 4),
        (Span(400, 1000, 1, 6), 4),
    ],
)
async def test_what_is_not_the_rest_of_a_chunk_changes_nothing(
    store: JobStore, rest: Span, told: int
) -> None:
    job = await make.planned(store, chunks=1)
    claimed = await make.claimed(store, job)
    before = await make.read(store, job), await make.chunks_of(store, job)
    with pytest.raises(ValueError, match=job.id):
        await store.complete_chunk(claimed.claim, make.result(told), rest)
    assert before == (await make.read(store, job), await make.chunks_of(store, job))
    assert await store.complete_chunk(claimed.claim, make.result())


async def test_rests_count_as_what_is_to_do(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    await _split(store, await make.claimed(store, job), left=6)
    await make.claimed(store, job, 1)
    backlog = await store.waiting()
    assert (backlog.chunks_waiting, backlog.chunks_running) == (1, 1)
