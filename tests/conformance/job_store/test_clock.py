"""The store's clock is put back: nobody waits until it is again where it was."""

from __future__ import annotations

from typing import Final

from headrace.domain.chunks import ChunkRef
from headrace.ports.job_store import JobStore
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make

_HOUR_S: Final = 3600
_LEASE_S: Final = 0.3


async def test_a_silent_worker_is_waited_for_no_longer_than_its_lease(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    await make.claimed(store, job, 0, lease_s=_LEASE_S)
    await make.claimed(store, job, 1, lease_s=make.LONG_S)
    await stage.put_back(_HOUR_S)
    assert not await store.release_overdue(10)  # those who live have the time to say so
    await stage.lapse(_LEASE_S)
    assert [each.chunk.ref.index for each in await store.release_overdue(10)] == [0]


async def test_a_worker_that_goes_on_keeps_its_chunk(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    claims = [(await make.claimed(store, job, n, lease_s=_LEASE_S)).claim for n in range(2)]
    await stage.put_back(_HOUR_S)
    assert await store.renew_chunks(claims[:1], make.LONG_S) == {claims[0]}
    await store.release_overdue(10)
    assert await store.renew_chunks(claims[1:], make.LONG_S) == {claims[1]}
    await stage.lapse(_LEASE_S)
    assert not await store.release_overdue(10)
    assert await store.complete_chunk(claims[0], make.result())
    chunks = await make.chunks_of(store, job)
    assert [each.failures for each in chunks] == [0, 0]


async def test_a_lost_message_is_missed_no_later(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    await store.queue_chunks(by="p", window=9, shared=True)
    await stage.put_back(_HOUR_S)
    await store.release_overdue(10)
    assert not await store.requeue(by="p", older_than_s=_LEASE_S)
    await stage.lapse(_LEASE_S)
    assert make.indexes(await store.requeue(by="p", older_than_s=_LEASE_S), job) == [0]


async def test_a_chunk_that_is_to_wait_waits_no_longer(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    for index, delay_s in enumerate((_LEASE_S, make.LONG_S)):
        claim = (await make.claimed(store, job, index)).claim
        assert await store.release_chunk(claim, story="busy", delay_s=delay_s)
    await stage.put_back(_HOUR_S)
    await store.release_overdue(10)
    assert not await store.queue_chunks(by="p", window=9, shared=True)
    await stage.lapse(_LEASE_S)
    assert make.indexes(await store.queue_chunks(by="p", window=9, shared=True), job) == [0]


async def test_a_chunk_that_was_handed_back_and_queued_is_claimed(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    assert await store.release_chunk((await make.claimed(store, job)).claim)
    await store.queue_chunks(by="p", window=9, shared=True)
    await stage.put_back(_HOUR_S)
    await store.release_overdue(10)
    assert await store.claim_chunk(ChunkRef(job.id, 0), "w", make.LONG_S)


async def test_a_job_is_held_no_longer_than_the_lease(stage: Stage) -> None:
    store = stage.store
    new = await make.created(store)
    silent = await make.claimed_job(store, "silent", _LEASE_S)
    await stage.put_back(_HOUR_S)
    await store.release_overdue(10)
    assert await store.claim_job("early", make.LONG_S) is None
    assert await store.renew_job(silent, _LEASE_S)
    await stage.lapse(_LEASE_S)
    claim = await make.claimed_job(store, "another")
    assert (claim.job.id, claim.attempt) == (new.id, 2)


async def test_a_job_that_was_handed_back_is_claimed_at_once(stage: Stage) -> None:
    store = stage.store
    new = await make.created(store)
    await store.release_job(await make.claimed_job(store))
    await stage.put_back(_HOUR_S)
    await store.release_overdue(10)
    assert (await make.claimed_job(store, "another")).job.id == new.id


async def test_what_began_since_goes_on_as_it_is(stage: Stage) -> None:
    """What another process did before anybody looked."""
    store = stage.store
    job = await make.planned(store, chunks=2)
    await make.claimed(store, job, 0)
    await stage.put_back(_HOUR_S)
    claimed = await make.claimed(store, job, 1, lease_s=_LEASE_S)
    await store.release_overdue(10)
    assert await store.renew_chunks([claimed.claim], _LEASE_S) == {claimed.claim}
    await stage.lapse(_LEASE_S)
    assert [each.chunk.ref.index for each in await store.release_overdue(10)] == [1]


async def test_the_stamps_of_a_job_stay_in_order(stage: Stage) -> None:
    store = stage.store
    new = await make.created(store)
    claim = await make.claimed_job(store)
    assert await store.add_chunks(claim, make.spans(2), first=0)
    await stage.put_back(_HOUR_S)
    created_at = (await make.read(store, new)).timeline.created_at
    planned = await store.planned(claim, chunks=2, rows=20)
    assert planned is not None
    assert planned.timeline.in_progress_at == created_at
    await make.run(store, [ChunkRef(new.id, 0), ChunkRef(new.id, 1)])
    await stage.put_back(_HOUR_S)
    before = (await make.read(store, new)).timeline
    ended = (await make.ended(store, new)).timeline
    assert before.finalizing_at is not None
    assert before.finalizing_at >= before.created_at
    assert ended.completed_at == before.finalizing_at


async def test_the_stamps_of_jobs_that_are_ended_early_stay_in_order(stage: Stage) -> None:
    store = stage.store
    new = await make.created(store)
    await stage.put_back(_HOUR_S)
    cancelling = (await store.cancel_job(new.tenant, new.id)).timeline
    assert cancelling.cancelling_at == cancelling.created_at
    await stage.put_back(_HOUR_S)
    stamps = (await make.ended(store, new)).timeline
    assert stamps.cancelled_at == stamps.cancelling_at == stamps.created_at

    refused = await make.created(store)
    claim = await make.claimed_job(store)
    await stage.put_back(_HOUR_S)
    told = await store.refuse(claim, [])
    assert told is not None
    assert told.timeline.failed_at == told.timeline.created_at
    assert (await make.read(store, refused)).state == "failed"


async def test_nothing_waits_less_than_since_the_beginning(stage: Stage) -> None:
    store: JobStore = stage.store
    await make.created(store)
    await stage.put_back(_HOUR_S)
    assert (await store.waiting()).oldest_s == 0.0
