from __future__ import annotations

import asyncio

import pytest

from headrace.domain.chunks import Chunk, ChunkRef
from headrace.ports.job_store import JobStore
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make


async def test_chunks_are_queued_in_order_and_once(store: JobStore) -> None:
    job = await make.planned(store, chunks=5)
    first = await store.queue_chunks(by="p", window=3, shared=True)
    assert make.indexes(first, job) == [0, 1, 2]
    assert await make.states_of(store, job) == ["queued"] * 3 + ["waiting"] * 2
    assert not await store.queue_chunks(by="p", window=3, shared=True)
    rest = await store.queue_chunks(by="p", window=10, shared=True)
    assert make.indexes(rest, job) == [3, 4]


async def test_the_window_counts_what_is_queued_and_what_is_running(store: JobStore) -> None:
    job = await make.planned(store, chunks=9)
    await store.queue_chunks(by="p", window=3, shared=True)
    first = await make.claimed(store, job, 0)
    assert not await store.queue_chunks(by="p", window=3, shared=True)
    assert await store.complete_chunk(first.claim, make.result())
    found = await store.queue_chunks(by="p", window=3, shared=True)
    assert make.indexes(found, job) == [3]


async def test_a_shared_window_is_everybody_s(store: JobStore) -> None:
    job = await make.planned(store, chunks=9)
    await store.queue_chunks(by="p1", window=3, shared=True)
    assert not await store.queue_chunks(by="p2", window=3, shared=True)
    found = await store.queue_chunks(by="p2", window=4, shared=True)
    assert make.indexes(found, job) == [3]


async def test_a_window_of_one_s_own_counts_what_it_queued_and_what_it_holds(
    store: JobStore,
) -> None:
    job = await make.planned(store, chunks=9)
    found = await store.queue_chunks(by="p1", window=3, shared=False)
    assert make.indexes(found, job) == [0, 1, 2]
    await make.claimed(store, job, 0, holder="p1")
    assert not await store.queue_chunks(by="p1", window=3, shared=False)
    found = await store.queue_chunks(by="p2", window=3, shared=False)
    assert make.indexes(found, job) == [3, 4, 5]
    await make.run(store, [ChunkRef(job.id, 1)])
    found = await store.queue_chunks(by="p1", window=3, shared=False)
    assert make.indexes(found, job) == [6]


async def test_of_many_who_queue_at_once_each_has_other_chunks(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=40)
    stores = [stage.store, await stage.another()]
    answers = await asyncio.gather(
        *(stores[n % 2].queue_chunks(by=f"p{n}", window=5, shared=False) for n in range(8))
    )
    found = [index for answer in answers for index in make.indexes(answer, job)]
    assert len(set(found)) == len(found)
    # who saw another's at the moment asks again, as a dispatcher does
    for n in range(8):
        found += make.indexes(
            await stage.store.queue_chunks(by=f"p{n}", window=5, shared=False), job
        )
    assert sorted(found) == list(range(40))


async def test_many_who_share_a_window_do_not_overrun_it(stage: Stage) -> None:
    job = await make.planned(stage.store, chunks=60)
    stores = [stage.store, await stage.another()]
    await asyncio.gather(
        *(stores[n % 2].queue_chunks(by=f"p{n}", window=10, shared=True) for n in range(8))
    )
    await stage.store.queue_chunks(by="p", window=10, shared=True)
    assert (await make.states_of(stage.store, job)).count("queued") == 10


async def test_a_huge_job_does_not_make_a_tiny_one_wait(store: JobStore) -> None:
    huge = await make.planned(store, chunks=200)
    queued = await store.queue_chunks(by="p", window=8, shared=True)
    assert len(make.indexes(queued, huge)) == 8
    tiny = await make.planned(store, chunks=2)
    await make.run(store, [ChunkRef(huge.id, index) for index in range(4)])
    queued = await store.queue_chunks(by="p", window=8, shared=True)
    assert make.indexes(queued, tiny) == [0, 1]
    assert len(queued) == 4


async def test_jobs_that_wait_together_are_all_begun(store: JobStore) -> None:
    jobs = [await make.planned(store, chunks=20) for _ in range(4)]
    queued = await store.queue_chunks(by="p", window=8, shared=True)
    assert [len(make.indexes(queued, job)) for job in jobs] == [2] * 4


async def test_jobs_of_two_tenants_take_turns(store: JobStore) -> None:
    jobs = [await make.planned(store, chunks=20, tenant=name) for name in ("acme", "other")]
    queued = await store.queue_chunks(by="p", window=6, shared=True)
    assert [len(make.indexes(queued, job)) for job in jobs] == [3, 3]


async def test_more_of_a_job_of_high_priority_is_queued(store: JobStore) -> None:
    low = await make.planned(store, chunks=60, priority=-10)
    plain = await make.planned(store, chunks=60)
    high = await make.planned(store, chunks=60, priority=10)
    queued = await store.queue_chunks(by="p", window=40, shared=True)
    shares = [len(make.indexes(queued, job)) for job in (low, plain, high)]
    assert shares == sorted(set(shares))
    assert shares[2] >= 2 * shares[1]
    assert shares[0] >= 1


@pytest.mark.parametrize("priority", [10, -10])
async def test_priority_takes_nothing_from_other_tenants(store: JobStore, priority: int) -> None:
    urgent = [await make.planned(store, chunks=40, priority=priority) for _ in range(2)]
    plain = await make.planned(store, chunks=40, tenant="other")
    shares = [0, 0]
    for _ in range(3):  # a place on the line is kept from one look to the next
        queued = await store.queue_chunks(by="p", window=8, shared=True)
        shares[0] += sum(len(make.indexes(queued, job)) for job in urgent)
        shares[1] += len(make.indexes(queued, plain))
        await make.run(store, [chunk.ref for chunk in queued])
    assert shares == [12, 12]


async def test_a_tenants_jobs_of_high_priority_come_first_of_its_own(store: JobStore) -> None:
    low = await make.planned(store, chunks=60, priority=-5)
    high = await make.planned(store, chunks=60, priority=5)
    plain = await make.planned(store, chunks=60, tenant="other")
    queued = await store.queue_chunks(by="p", window=40, shared=True)
    shares = [len(make.indexes(queued, job)) for job in (low, high, plain)]
    assert shares == [4, 16, 20]


async def test_a_job_of_low_priority_has_its_turn_in_a_small_window_too(store: JobStore) -> None:
    low = await make.planned(store, chunks=2, priority=0)
    high = await make.planned(store, chunks=40, priority=5)
    turns: list[Chunk] = []
    while 1 not in make.indexes(turns, low):
        queued = await store.queue_chunks(by="p", window=2, shared=True)
        assert queued, "all of the other was queued first"
        turns += queued
        await make.run(store, [ChunkRef(low.id, n) for n in make.indexes(queued, low)])
        await make.run(store, [ChunkRef(high.id, n) for n in make.indexes(queued, high)])
        assert len(make.indexes(turns, high)) <= 20


async def test_a_job_that_waited_long_does_not_make_up_for_it(store: JobStore) -> None:
    """Its turns while it had nothing to queue are over."""
    first = await make.planned(store, chunks=40)
    await store.queue_chunks(by="p", window=20, shared=True)
    second = await make.planned(store, chunks=40)
    await make.run(store, [ChunkRef(first.id, index) for index in range(20)])
    queued = await store.queue_chunks(by="p", window=20, shared=True)
    assert len(make.indexes(queued, first)) >= 8
    assert len(make.indexes(queued, second)) >= 8


async def test_what_was_queued_and_nobody_took_is_queued_anew(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=3)
    await store.queue_chunks(by="p1", window=2, shared=True)
    assert not await store.requeue(by="p2", older_than_s=make.LONG_S)
    await make.claimed(store, job, 0)
    await stage.lapse(0.1)
    assert make.indexes(await store.requeue(by="p2", older_than_s=0.1), job) == [1]
    assert not await store.requeue(by="p2", older_than_s=60.0)
    assert await make.states_of(store, job) == ["running", "queued", "waiting"]


async def test_what_is_queued_anew_again_and_again_is_so_more_and_more_seldom(stage: Stage) -> None:
    store = stage.store
    await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=1, shared=True)
    for _ in range(6):
        assert await store.requeue(by="p", older_than_s=0.0, most_patience=64)
    await stage.lapse(0.1)
    assert not await store.requeue(by="p", older_than_s=0.1, most_patience=64)  # in 6.4 s


async def test_there_is_an_end_to_the_patience_with_what_is_queued(stage: Stage) -> None:
    store = stage.store
    await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=1, shared=True)
    for _ in range(6):
        assert await store.requeue(by="p", older_than_s=0.0, most_patience=2)
    await stage.lapse(0.2)
    assert await store.requeue(by="p", older_than_s=0.1, most_patience=2)


async def test_what_is_queued_after_a_failure_is_waited_for_as_at_first(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=1, shared=True)
    for _ in range(6):
        await store.requeue(by="p", older_than_s=0.0, most_patience=64)
    claim = await make.claimed(store, job)
    assert await store.release_chunk(claim.claim, story="it failed")
    await store.queue_chunks(by="p", window=1, shared=True)
    await stage.lapse(0.1)
    assert await store.requeue(by="p", older_than_s=0.1, most_patience=64)


async def test_what_is_queued_anew_is_in_the_window_of_whoever_did(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=4)
    await store.queue_chunks(by="gone", window=2, shared=False)
    await stage.lapse(0.05)
    assert make.indexes(await store.requeue(by="p", older_than_s=0.05), job) == [0, 1]
    assert not await store.queue_chunks(by="p", window=2, shared=False)
    assert make.indexes(await store.queue_chunks(by="gone", window=2, shared=False), job) == [2, 3]


async def test_what_is_queued_anew_is_worked_on_once(stage: Stage) -> None:
    """The first message may have been late, not lost."""
    store = stage.store
    job = await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=1, shared=True)
    await stage.lapse(0.05)
    await store.requeue(by="p", older_than_s=0.05)
    claim = await make.claimed(store, job)
    assert await store.claim_chunk(ChunkRef(job.id, 0), "w2", make.LONG_S) is None
    assert await store.complete_chunk(claim.claim, make.result())
    assert await store.claim_chunk(ChunkRef(job.id, 0), "w2", make.LONG_S) is None
