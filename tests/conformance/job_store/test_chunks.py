from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import msgspec
import pytest

from headrace.domain.chunks import ChunkRef, ChunkResult, Claim, Part
from headrace.domain.jobs import Counts
from headrace.ports.job_store import JobStore, Overdue
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make


async def test_a_claimed_chunk_comes_with_its_job_and_its_fence(store: JobStore) -> None:
    job = await make.planned(store, metadata={"a": "b"})
    claimed = await make.claimed(store, job, 1, holder="w1")
    assert claimed.claim == Claim(ChunkRef(job.id, 1), 1, "w1")
    assert claimed.job == job
    assert claimed.chunk.ref == claimed.claim.ref
    assert (claimed.chunk.state, claimed.chunk.attempt) == ("running", 1)
    assert claimed.chunk.span == make.spans(3)[1]


async def test_a_chunk_is_worked_on_by_one_at_a_time(store: JobStore) -> None:
    job = await make.planned(store)
    await make.claimed(store, job, 0, holder="w1")
    for holder in ("w1", "w2"):
        assert await store.claim_chunk(ChunkRef(job.id, 0), holder, make.LONG_S) is None
    assert await store.claim_chunk(ChunkRef(job.id, 1), "w2", make.LONG_S) is not None


async def test_of_many_who_claim_a_chunk_one_has_it(stage: Stage) -> None:
    job = await make.planned(stage.store)
    stores = [stage.store, await stage.another()]
    ref = ChunkRef(job.id, 1)
    claims = await asyncio.gather(
        *(stores[n % 2].claim_chunk(ref, f"w{n}", make.LONG_S) for n in range(16))
    )
    assert sum(claim is not None for claim in claims) == 1
    assert (await make.chunks_of(stage.store, job))[1].attempt == 1


@pytest.mark.parametrize("ref", [ChunkRef("batch_none", 0), ChunkRef("", -1)])
async def test_there_is_nothing_to_do_for_a_chunk_that_is_not_there(
    store: JobStore, ref: ChunkRef
) -> None:
    assert await store.claim_chunk(ref, "w", make.LONG_S) is None
    assert not await store.bury_chunk(ref, 0)
    claim = Claim(ref, 1, "w")
    assert not await store.complete_chunk(claim, make.result())
    assert not await store.release_chunk(claim)
    assert not await store.renew_chunks([claim], make.LONG_S)


async def test_there_is_nothing_to_do_for_a_number_behind_the_last_chunk(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    assert await store.claim_chunk(ChunkRef(job.id, 2), "w", make.LONG_S) is None


async def test_a_completed_chunk_is_counted_once(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    claimed = await make.claimed(store, job, 0)
    result = ChunkResult(
        completed=7, failed=3, output=Part("a/é.jsonl", 2**40), errors=Part("b", 1)
    )
    assert await store.complete_chunk(claimed.claim, result)
    after = await make.read(store, job)
    assert after.counts == Counts(20, 7, 3)
    assert (after.open_chunks, after.state) == (1, "in_progress")
    assert after.revision > job.revision
    chunk = (await make.chunks_of(store, job))[0]
    assert (chunk.state, chunk.result) == ("done", result)

    assert not await store.complete_chunk(claimed.claim, result)
    assert not await store.release_chunk(claimed.claim)
    assert not await store.renew_chunks([claimed.claim], make.LONG_S)
    assert await store.claim_chunk(claimed.claim.ref, "w2", make.LONG_S) is None
    assert not await store.bury_chunk(claimed.claim.ref, 1)
    assert await make.read(store, job) == after


async def test_of_many_who_complete_a_chunk_one_is_counted(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=1)
    stores = [stage.store, await stage.another()]
    claimed = await make.claimed(stage.store, job)
    done = await asyncio.gather(
        *(stores[n % 2].complete_chunk(claimed.claim, make.result()) for n in range(16))
    )
    assert [each is not None for each in done].count(True) == 1
    assert (await make.read(stage.store, job)).counts == Counts(10, 10, 0)


async def test_chunks_that_are_completed_at_once_are_all_counted(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=16)
    stores = [stage.store, await stage.another()]
    claims = [await make.claimed(stage.store, job, n) for n in range(16)]
    done = await asyncio.gather(
        *(
            stores[n % 2].complete_chunk(each.claim, make.result(failed=1))
            for n, each in enumerate(claims)
        )
    )
    assert all(done)
    after = await make.read(stage.store, job)
    assert after.counts == Counts(160, 144, 16)
    assert (after.state, after.open_chunks) == ("finalizing", 0)


async def test_the_last_completed_chunk_makes_the_job_ready_to_finish(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    await make.run(store, [ChunkRef(job.id, 1)])
    assert await store.claim_job("f", make.LONG_S) is None
    await make.run(store, [ChunkRef(job.id, 0)])
    after = await make.read(store, job)
    assert after.state == "finalizing"
    assert after.timeline.finalizing_at is not None
    assert (await make.claimed_job(store, "f")).job == after


async def test_counts_and_revisions_only_grow(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=6)
    seen = [job]

    async def look() -> None:
        seen.append(await make.read(store, job))

    await make.run(store, [ChunkRef(job.id, 0)], failed=2)
    await look()
    silent = await make.claimed(store, job, 1, lease_s=0.05)
    await stage.lapse(0.05)
    await store.release_overdue(10)
    await look()
    await make.run(store, [ChunkRef(job.id, 1)])
    assert not await store.complete_chunk(silent.claim, make.result())
    await look()
    assert await store.bury_chunk(ChunkRef(job.id, 2), 0)
    await look()
    running = await make.claimed(store, job, 3)
    await store.cancel_job(job.tenant, job.id)
    await look()
    assert await store.complete_chunk(running.claim, make.result(failed=9))
    await look()
    seen.append(await make.ended(store, job))
    for attribute in ("completed", "failed"):
        values = [getattr(each.counts, attribute) for each in seen]
        assert values == sorted(values), attribute
    assert {each.counts.total for each in seen} == {60}
    for before, after in itertools.pairwise(seen):
        if msgspec.structs.replace(after, revision=before.revision) != before:
            assert after.revision > before.revision
    assert seen[-1].counts.completed + seen[-1].counts.failed == 60


async def test_a_worker_that_is_late_completes_if_nobody_took_over(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store)
    claimed = await make.claimed(store, job, 0, lease_s=0.05)
    await stage.lapse(0.05)
    assert await store.complete_chunk(claimed.claim, make.result())


async def test_a_renewed_lease_goes_on(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store)
    claimed = [await make.claimed(store, job, n, lease_s=0.3) for n in range(3)]
    held = [each.claim for each in claimed]
    assert await store.renew_chunks(held[:2], make.LONG_S) == frozenset(held[:2])
    await stage.lapse(0.3)
    assert _refs(await store.release_overdue(10)) == [held[2].ref]
    assert await store.renew_chunks(held, make.LONG_S) == frozenset(held[:2])
    assert await store.renew_chunks([], make.LONG_S) == frozenset()


async def test_only_whoever_holds_a_chunk_renews_it(store: JobStore) -> None:
    job = await make.planned(store)
    claim = (await make.claimed(store, job, 0, holder="w1")).claim
    others = [
        msgspec.structs.replace(claim, holder="w2"),
        msgspec.structs.replace(claim, attempt=2),
        msgspec.structs.replace(claim, ref=ChunkRef(job.id, 1)),
    ]
    assert await store.renew_chunks([claim, *others], make.LONG_S) == {claim}


async def test_the_chunks_of_a_job_that_stops_are_told_apart(store: JobStore) -> None:
    stopped = await make.planned(store)
    other = await make.planned(store)
    claims = [(await make.claimed(store, job, 0)).claim for job in (stopped, other)]
    await store.cancel_job("acme", stopped.id)
    assert await store.renew_chunks(claims, make.LONG_S) == {claims[1]}


async def test_the_chunks_of_a_job_that_stops_stay_their_holders_as_long_as_they_say_so(
    stage: Stage,
) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    running = await make.claimed(store, job, 0, lease_s=0.05)
    await store.cancel_job("acme", job.id)
    assert not await store.renew_chunks([running.claim], make.LONG_S)
    await stage.lapse(0.05)
    assert not await store.release_overdue(10)
    assert await store.complete_chunk(running.claim, make.result())


async def test_a_chunk_that_is_handed_back_is_another_s_at_once(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    first = await make.claimed(store, job, holder="w1")
    assert await store.release_chunk(first.claim)
    chunk = (await make.chunks_of(store, job))[0]
    assert (chunk.state, chunk.attempt, chunk.failures, chunk.story) == ("waiting", 1, 0, ())
    assert make.indexes(await store.queue_chunks(by="p", window=1, shared=True), job) == [0]
    second = await make.claimed(store, job, holder="w2")
    assert second.claim.attempt == 2
    assert not await store.release_chunk(first.claim)
    assert not await store.complete_chunk(first.claim, make.result())
    assert await store.complete_chunk(second.claim, make.result())


async def test_a_chunk_that_is_handed_back_with_a_story_has_failed_once_more(
    store: JobStore,
) -> None:
    job = await make.planned(store, chunks=1)
    for n in range(12):
        claimed = await make.claimed(store, job)
        assert claimed.chunk.failures == n
        assert await store.release_chunk(claimed.claim, story=f"é {n}")
        chunk = (await make.chunks_of(store, job))[0]
        assert (chunk.attempt, chunk.failures, chunk.story[-1]) == (n + 1, n + 1, f"é {n}")
    story = (await make.chunks_of(store, job))[0].story
    assert len(story) < 12  # the last ones alone are kept
    assert (await make.read(store, job)).counts == Counts(total=10)


async def test_a_chunk_that_is_handed_back_for_later_is_not_queued_before(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    for index, delay_s in enumerate((0.3, make.LONG_S)):
        claimed = await make.claimed(store, job, index)
        assert await store.release_chunk(claimed.claim, story="busy", delay_s=delay_s)
    assert await make.states_of(store, job) == ["waiting", "waiting"]
    assert not await store.queue_chunks(by="p", window=9, shared=True)
    await stage.lapse(0.3)
    assert make.indexes(await store.queue_chunks(by="p", window=9, shared=True), job) == [0]


async def test_a_chunk_that_is_handed_back_for_later_is_not_claimed_before(
    store: JobStore,
) -> None:
    """An old message may come twice."""
    job = await make.planned(store, chunks=1)
    claimed = await make.claimed(store, job)
    assert await store.release_chunk(claimed.claim, delay_s=make.LONG_S)
    assert await store.claim_chunk(claimed.claim.ref, "w2", make.LONG_S) is None


async def test_a_chunk_whose_worker_is_silent_has_failed_and_waits(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store)
    await make.claimed(store, job, 0, holder="alive")
    silent = await make.claimed(store, job, 1, holder="silent", lease_s=0.05)
    assert not await store.release_overdue(0)
    await stage.lapse(0.05)
    overdue = await store.release_overdue(10)
    assert [(each.chunk.ref.index, each.holder) for each in overdue] == [(1, "silent")]
    chunk = (await make.chunks_of(store, job))[1]
    assert overdue[0].chunk == chunk
    assert (chunk.state, chunk.attempt, chunk.failures) == ("waiting", 1, 1)
    assert len(chunk.story) == 1
    assert not await store.release_overdue(10)

    queued = await store.queue_chunks(by="p", window=9, shared=True)
    assert sorted(make.indexes(queued, job)) == [1, 2]
    again = await make.claimed(store, job, 1, holder="other")
    assert again.claim.attempt == 2
    assert not await store.complete_chunk(silent.claim, make.result())
    assert not await store.release_chunk(silent.claim, story="late")
    assert not await store.renew_chunks([silent.claim], make.LONG_S)
    assert await store.complete_chunk(again.claim, make.result())


async def test_a_silent_worker_changes_nothing_though_nobody_took_its_chunk_yet(
    stage: Stage,
) -> None:
    store = stage.store
    job = await make.planned(store)
    silent = await make.claimed(store, job, 0, lease_s=0.05)
    await stage.lapse(0.05)
    await store.release_overdue(10)
    before = await make.chunks_of(store, job)
    assert not await store.complete_chunk(silent.claim, make.result())
    assert not await store.release_chunk(silent.claim, story="late")
    assert not await store.renew_chunks([silent.claim], make.LONG_S)
    assert await make.chunks_of(store, job) == before


async def test_silent_workers_are_found_some_at_a_time_and_once(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=20)
    stores = [stage.store, await stage.another()]
    for index in range(20):
        await make.claimed(stage.store, job, index, lease_s=0.05)
    await stage.lapse(0.05)
    assert len(await stage.store.release_overdue(4)) == 4
    answers = await asyncio.gather(*(stores[n % 2].release_overdue(20) for n in range(4)))
    found = [ref for answer in answers for ref in _refs(answer)]
    assert len(set(found)) == len(found)
    await stage.store.release_overdue(20)
    chunks = await make.chunks_of(stage.store, job)
    assert {(chunk.state, chunk.failures) for chunk in chunks} == {("waiting", 1)}


async def test_a_buried_chunk_is_dead_and_its_rows_fail_at_the_end(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    claimed = await make.claimed(store, job, 0)
    await store.release_chunk(claimed.claim, story="it broke")
    await make.run(store, [ChunkRef(job.id, 1)])
    assert await store.bury_chunk(ChunkRef(job.id, 0), 1)
    chunk = (await make.chunks_of(store, job))[0]
    assert (chunk.state, chunk.story, chunk.result) == ("dead", ("it broke",), None)
    after = await make.read(store, job)
    assert (after.state, after.open_chunks, after.counts) == ("finalizing", 0, Counts(20, 10, 0))
    assert await store.claim_chunk(ChunkRef(job.id, 0), "w", make.LONG_S) is None
    assert not await store.bury_chunk(ChunkRef(job.id, 0), 1)
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("completed", Counts(20, 10, 10))


async def test_a_queued_chunk_is_buried_and_leaves_the_window(store: JobStore) -> None:
    job = await make.planned(store, chunks=3)
    await store.queue_chunks(by="p", window=1, shared=True)
    assert await store.bury_chunk(ChunkRef(job.id, 0), 0)
    found = await store.queue_chunks(by="p", window=1, shared=True)
    assert make.indexes(found, job) == [1]
    assert (await make.read(store, job)).open_chunks == 2


async def test_a_chunk_that_somebody_took_meanwhile_is_not_buried(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    first = await make.claimed(store, job)
    assert not await store.bury_chunk(first.claim.ref, 1)
    await store.release_chunk(first.claim, story="it broke")
    second = await make.claimed(store, job)
    assert not await store.bury_chunk(first.claim.ref, 2)
    await store.release_chunk(second.claim)
    assert not await store.bury_chunk(first.claim.ref, 1)
    assert await make.states_of(store, job) == ["waiting"]
    assert (await make.read(store, job)).open_chunks == 1


async def test_a_chunk_is_buried_or_claimed_and_never_both(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=8)
    other = await stage.another()
    for index in range(8):
        ref = ChunkRef(job.id, index)
        buried, claimed = await asyncio.gather(
            stage.store.bury_chunk(ref, 0), other.claim_chunk(ref, "w", make.LONG_S)
        )
        assert buried == (claimed is None)


def _refs(overdue: Sequence[Overdue]) -> list[ChunkRef]:
    return [each.chunk.ref for each in overdue]
