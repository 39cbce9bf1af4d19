from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import NotFound
from headrace.domain.jobs import Counts, FileProblem, Job
from headrace.ports.job_store import JobClaim, JobStore, PageQuery
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make


async def test_a_cancelled_job_skips_what_nobody_works_on(store: JobStore) -> None:
    job = await make.planned(store, chunks=4)
    await make.run(store, [ChunkRef(job.id, 0)])
    await store.queue_chunks(by="p", window=2, shared=True)
    running = await make.claimed(store, job, 1)
    cancelled = await store.cancel_job("acme", job.id)
    assert (cancelled.state, cancelled.ending) == ("cancelling", "cancelled")
    assert cancelled.open_chunks == 1
    assert cancelled.timeline.cancelling_at is not None
    assert cancelled.revision > job.revision
    assert await make.read(store, job) == cancelled
    assert await make.states_of(store, job) == ["done", "running", "skipped", "skipped"]
    assert await store.claim_job("f", make.LONG_S) is None

    assert await store.complete_chunk(running.claim, make.parts(running, failed=4))
    after = await make.read(store, job)
    assert (after.state, after.open_chunks) == ("cancelling", 0)
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("cancelled", Counts(40, 16, 24))
    assert ended.timeline.cancelled_at is not None


async def test_a_cancelled_job_that_nobody_works_on_is_ready_to_finish(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    cancelled = await store.cancel_job("acme", job.id)
    assert (await make.claimed_job(store, "f")).job == cancelled


async def test_a_job_is_cancelled_once(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    await make.claimed(store, job)
    first = await store.cancel_job("acme", job.id)
    assert await store.cancel_job("acme", job.id) == first


async def test_a_job_that_has_ended_is_not_cancelled(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    ended = await make.ended(store, job)
    assert await store.cancel_job("acme", job.id) == ended
    assert ended.state == "completed"
    assert ended.timeline.cancelling_at is None


async def test_a_job_that_is_cancelled_while_it_is_finished_ends_as_cancelled(
    store: JobStore,
) -> None:
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store, "f")
    assert (await store.cancel_job("acme", job.id)).state == "cancelling"
    ended = await make.finished(store, claim)
    assert ended is not None
    assert (ended.state, ended.counts) == ("cancelled", Counts(10, 10, 0))
    assert ended.output_file


async def test_there_is_nothing_to_do_for_the_chunks_of_a_cancelled_job(store: JobStore) -> None:
    job = await make.planned(store, chunks=3)
    await store.queue_chunks(by="p", window=2, shared=True)
    await store.cancel_job("acme", job.id)
    for index in range(3):
        ref = ChunkRef(job.id, index)
        assert await store.claim_chunk(ref, "w", make.LONG_S) is None
        assert not await store.bury_chunk(ref, 0)
    assert not await store.queue_chunks(by="p", window=9, shared=True)
    assert not await store.requeue(by="p", older_than_s=0)


async def test_what_a_cancelled_job_had_queued_leaves_the_window(store: JobStore) -> None:
    stopped = await make.planned(store, chunks=3)
    await store.queue_chunks(by="p", window=3, shared=True)
    other = await make.planned(store, chunks=3)
    await store.cancel_job("acme", stopped.id)
    found = await store.queue_chunks(by="p", window=3, shared=True)
    assert make.indexes(found, other) == [0, 1, 2]


async def test_a_chunk_that_is_handed_back_by_a_cancelled_job_is_skipped(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    claims = [await make.claimed(store, job, n) for n in range(2)]
    await store.cancel_job("acme", job.id)
    assert await store.release_chunk(claims[0].claim)
    assert await store.release_chunk(claims[1].claim, story="stopped", delay_s=make.LONG_S)
    assert await make.states_of(store, job) == ["skipped", "skipped"]
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("cancelled", Counts(20, 0, 20))


async def test_a_cancelled_job_does_not_wait_for_a_silent_worker_for_ever(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    silent = await make.claimed(store, job, 0, lease_s=0.05)
    await store.cancel_job("acme", job.id)
    await stage.lapse(0.05)
    await store.release_overdue(10)
    assert await make.states_of(store, job) == ["skipped", "skipped"]
    assert not await store.complete_chunk(silent.claim, make.result())
    assert (await make.ended(store, job)).counts == Counts(20, 0, 20)


async def test_a_job_whose_window_is_over_ends_as_expired(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=3, window_s=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    running = await make.claimed(store, job, 1)
    assert await store.renew_chunks([running.claim], make.LONG_S) == {running.claim}
    await _over(stage, job)
    assert [(each.id, each.ending) for each in await store.expire_jobs(10)] == [(job.id, "expired")]
    assert not await store.expire_jobs(10)
    after = await make.read(store, job)
    assert after.open_chunks == 1
    assert after.revision > job.revision
    assert await make.states_of(store, job) == ["done", "running", "skipped"]
    assert not await store.renew_chunks([running.claim], make.LONG_S)
    assert not await store.queue_chunks(by="p", window=9, shared=True)
    assert await store.claim_chunk(ChunkRef(job.id, 2), "w", make.LONG_S) is None
    assert await store.claim_job("f", make.LONG_S) is None

    assert await store.complete_chunk(running.claim, make.parts(running, failed=5))
    assert (await make.read(store, job)).state == "finalizing"
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("expired", Counts(30, 15, 15))
    assert ended.timeline.expired_at is not None
    assert ended.timeline.completed_at is None


async def test_what_is_handed_back_by_an_expired_job_is_skipped(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2, window_s=1)
    handed = await make.claimed(store, job, 0)
    await make.claimed(store, job, 1, lease_s=0.05)
    await _over(stage, job)
    await store.expire_jobs(10)
    assert await store.release_chunk(handed.claim)
    await store.release_overdue(10)
    assert await make.states_of(store, job) == ["skipped", "skipped"]
    assert (await make.ended(store, job)).state == "expired"


async def test_a_job_that_nobody_works_on_is_ready_to_finish_when_it_expires(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2, window_s=1)
    await store.queue_chunks(by="p", window=1, shared=True)
    await _over(stage, job)
    assert len(await store.expire_jobs(10)) == 1
    assert await make.states_of(store, job) == ["skipped", "skipped"]
    claim = await make.claimed_job(store, "f")
    assert (claim.job.state, claim.job.ending) == ("finalizing", "expired")
    assert (await make.ended(store, await _handed_back(store, claim))).state == "expired"


async def test_a_job_whose_window_is_over_before_it_is_planned_expires_too(stage: Stage) -> None:
    store = stage.store
    job = await make.created(store, window_s=1)
    claim = await make.claimed_job(store)
    await store.add_chunks(claim, make.spans(2), first=0)
    await _over(stage, job)
    await store.expire_jobs(10)
    await store.planned(claim, chunks=2, rows=20)  # which may come too late, and does no harm
    assert not await store.queue_chunks(by="p", window=9, shared=True)
    assert (await make.ended(store, job)).state == "expired"


async def test_a_job_that_has_all_its_answers_does_not_expire(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1, window_s=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    await _over(stage, job)
    assert not await store.expire_jobs(10)
    assert (await make.ended(store, job)).state == "completed"


async def test_a_cancelled_job_does_not_expire(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1, window_s=1)
    await store.cancel_job("acme", job.id)
    await _over(stage, job)
    assert not await store.expire_jobs(10)
    assert (await make.ended(store, job)).state == "cancelled"


async def test_a_job_that_expires_is_not_cancelled(stage: Stage) -> None:
    """Whichever came first: `cancelling` ends `cancelled`."""
    store = stage.store
    running = await make.planned(store, chunks=2, window_s=1)
    await make.claimed(store, running, 0)
    waiting = await make.planned(store, chunks=1, window_s=1)
    await _over(stage, running)
    await _over(stage, waiting)
    await store.expire_jobs(10)
    for job, state in ((running, "in_progress"), (waiting, "finalizing")):
        before = await make.read(store, job)
        assert await store.cancel_job("acme", job.id) == before
        assert (before.state, before.ending) == (state, "expired")
    assert (await make.ended(store, waiting)).state == "expired"


async def test_jobs_expire_some_at_a_time(stage: Stage) -> None:
    store = stage.store
    jobs = [await make.planned(store, chunks=1, window_s=1) for _ in range(3)]
    kept = await make.planned(store, chunks=1)
    await _over(stage, jobs[-1])
    some = [job.id for job in await store.expire_jobs(2)]
    assert len(some) == 2
    some += [job.id for job in await store.expire_jobs(2)]
    assert sorted(some) == [job.id for job in jobs]
    assert await make.read(store, kept) == kept


async def test_a_finished_job_has_its_files_and_its_counts(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=3)
    await make.run(store, [ChunkRef(job.id, 0)], failed=2)
    await make.run(store, [ChunkRef(job.id, 1)])
    await store.bury_chunk(ChunkRef(job.id, 2), 0)
    claim = await make.claimed_job(store, "f")
    output = make.file(purpose="batch_output", filename="output.jsonl", size_bytes=18)
    errors = make.file(purpose="batch_output", filename="errors.jsonl", expires_at=2**40)
    ended = await store.finish(claim, output=output, errors=errors, rows_failed=12)
    assert ended is not None
    assert ended == await make.read(store, job)
    assert ended.state == "completed"
    assert (ended.output_file, ended.error_file) == (output.id, errors.id)
    assert ended.counts == Counts(30, 18, 12)
    assert ended.timeline.completed_at is not None
    assert ended.revision > claim.job.revision
    for file in (output, errors):
        kept = await store.file("acme", file.id)
        assert (kept.key, kept.size_bytes, kept.expires_at) == (
            file.key,
            file.size_bytes,
            file.expires_at,
        )
        assert abs(kept.created_at - await stage.now()) < 60


async def test_a_finished_job_may_have_no_file_at_all(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store, "f")
    ended = await store.finish(claim, output=None, errors=None, rows_failed=0)
    assert ended is not None
    assert (ended.output_file, ended.error_file) == ("", "")


async def test_a_job_whose_files_do_not_tell_of_all_rows_fails_with_them(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=2)
    await make.run(store, [ChunkRef(job.id, 0)], failed=3)
    assert await store.bury_chunk(ChunkRef(job.id, 1), 0)
    output, errors = make.file(purpose="batch_output"), make.file(purpose="batch_output")
    why = FileProblem("file_not_found", "10 rows are told nowhere é")
    before = await stage.now()
    ended = await store.finish(
        await make.claimed_job(store), output=output, errors=errors, rows_failed=3, problems=[why]
    )
    assert ended is not None
    assert (ended.state, ended.ending, ended.problems) == ("failed", "completed", (why,))
    assert (ended.output_file, ended.error_file) == (output.id, errors.id)
    assert ended.counts == Counts(20, 7, 3)
    assert before - 2 <= (ended.timeline.failed_at or 0) <= await stage.now() + 1
    assert ended.timeline.completed_at is None
    assert await make.read(store, job) == ended
    assert (await store.file("acme", errors.id)).key == errors.key
    assert list(await store.take_garbage(10)) == [f"batch/jobs/{job.id}/"]
    assert await store.claim_job("f", make.LONG_S) is None


async def test_so_does_one_that_was_cancelled(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await store.cancel_job("acme", job.id)
    why = [FileProblem("file_not_found", "gone")]
    ended = await store.finish(
        await make.claimed_job(store), output=None, errors=None, rows_failed=0, problems=why
    )
    assert ended is not None
    assert (ended.state, ended.ending) == ("failed", "cancelled")
    assert (ended.timeline.cancelled_at, bool(ended.timeline.failed_at)) == (None, True)
    assert (await make.read(store, job)).counts == Counts(10, 0, 0)


async def test_a_job_is_finished_once(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store, "f")
    stores = [store, await stage.another()]
    done = await asyncio.gather(*(make.finished(stores[n % 2], claim) for n in range(8)))
    assert sum(each is not None for each in done) == 1
    found = await store.files(PageQuery(tenant="acme", purpose="batch_output"))
    assert [file.id for file in found] == [(await make.read(store, job)).output_file]
    assert await store.claim_job("f2", make.LONG_S) is None
    assert not await store.renew_job(claim, make.LONG_S)


async def test_who_lost_a_job_to_another_finisher_finishes_nothing(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    lost = await make.claimed_job(store, "f1", 0.05)
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "f2")
    before = await make.read(store, job)
    output = make.file(purpose="batch_output")
    assert await store.finish(lost, output=output, errors=None, rows_failed=3) is None
    assert await make.read(store, job) == before
    with pytest.raises(NotFound):
        await store.file("acme", output.id)
    assert not await store.take_garbage(10)
    assert await store.finish(claim, output=output, errors=None, rows_failed=0) is not None
    assert (await store.file("acme", output.id)).key == output.key


async def test_whoever_is_to_finish_a_job_does_not_plan_it_again(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store, "f")
    before, chunks = await make.read(store, job), await make.chunks_of(store, job)
    assert not await store.add_chunks(claim, [], first=0)
    assert await store.planned(claim, chunks=1, rows=10) is None
    assert await store.refuse(claim, []) is None
    assert await make.read(store, job) == before
    assert await make.chunks_of(store, job) == chunks


async def test_whoever_is_to_plan_a_job_does_not_finish_it(store: JobStore) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    assert await store.finish(claim, output=None, errors=None, rows_failed=0) is None
    assert await make.read(store, job) == job


async def test_the_parts_of_a_finished_job_are_garbage_and_its_files_are_not(
    store: JobStore,
) -> None:
    job = await make.planned(store, chunks=2)
    await make.run(store, [ChunkRef(job.id, 0), ChunkRef(job.id, 1)], failed=1)
    parts = [
        part.key
        for chunk in await make.chunks_of(store, job)
        if chunk.result is not None
        for part in (chunk.result.output, chunk.result.errors)
    ]
    assert not await store.take_garbage(10)
    claim = await make.claimed_job(store, "f")
    assert not await store.take_garbage(10)
    ended = await make.finished(store, claim)
    assert ended is not None
    garbage = list(await store.take_garbage(100))
    for part in parts:
        assert _covers(garbage, part), part
    for id_ in (ended.input_file, ended.output_file, ended.error_file):
        assert not _covers(garbage, (await store.file("acme", id_)).key)
    await store.removed(garbage)
    assert not await store.take_garbage(100)


async def test_what_a_lost_attempt_wrote_is_garbage_at_the_end_too(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    lost = await make.claimed(store, job, lease_s=0.05)
    await stage.lapse(0.05)
    await store.release_overdue(10)
    await make.run(store, [ChunkRef(job.id, 0)])
    await make.ended(store, job)
    written = make.parts(lost).output.key
    assert _covers(await store.take_garbage(100), written), written


async def test_the_output_of_a_job_is_deleted_like_any_file(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    ended = await make.ended(store, job)
    await store.removed(await store.take_garbage(100))
    output = await store.file("acme", ended.output_file)
    await store.delete_file("acme", output.id)
    assert list(await store.take_garbage(100)) == [output.key]
    assert (await make.read(store, job)).output_file == output.id  # what it was is not forgotten


async def test_a_job_is_finished_when_it_has_no_holder_and_no_sooner(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store, "f1", 0.05)
    assert claim.job.id == job.id
    await stage.lapse(0.05)
    again = await make.claimed_job(store, "f2")
    assert (again.job.id, again.attempt > claim.attempt) == (job.id, True)
    assert await store.claim_job("f3", make.LONG_S) is None
    await store.release_job(again)
    assert (await make.claimed_job(store, "f3")).job.id == job.id


async def test_a_job_is_cancelled_or_its_last_chunk_completed_and_it_ends_either_way(
    stage: Stage,
) -> None:
    other = await stage.another()
    for _ in range(6):
        job = await make.planned(stage.store, chunks=2)
        await make.run(stage.store, [ChunkRef(job.id, 0)])
        claimed = await make.claimed(stage.store, job, 1)
        await asyncio.gather(
            stage.store.cancel_job("acme", job.id),
            other.complete_chunk(claimed.claim, make.parts(claimed)),
        )
        after = await make.read(stage.store, job)
        assert (after.state, after.open_chunks) == ("cancelling", 0)
        ended = await make.ended(stage.store, job)
        assert (ended.state, ended.counts) == ("cancelled", Counts(20, 20, 0))


async def test_cancelling_while_chunks_are_claimed_counts_each_once(stage: Stage) -> None:
    """Each chunk is skipped or claimed, and the open ones are those that are claimed."""
    stores = [stage.store, await stage.another()]
    job = await make.planned(stage.store, chunks=12)
    async with asyncio.TaskGroup() as tasks:
        claims = [
            tasks.create_task(stores[n % 2].claim_chunk(ChunkRef(job.id, n), f"w{n}", make.LONG_S))
            for n in range(12)
        ]
        tasks.create_task(stage.store.cancel_job("acme", job.id))
    held = [claim for task in claims if (claim := task.result()) is not None]
    after = await make.read(stage.store, job)
    states = await make.states_of(stage.store, job)
    assert after.open_chunks == len(held) == states.count("running")
    assert states.count("skipped") == 12 - len(held)
    for claim in held:
        assert await stage.store.complete_chunk(claim.claim, make.parts(claim))
    assert (await make.ended(stage.store, job)).counts.completed == 10 * len(held)


def _covers(garbage: Sequence[str], key: str) -> bool:
    """Whether an object is among keys; one that ends with a slash stands for all below it."""
    return any(key == each or (each.endswith("/") and key.startswith(each)) for each in garbage)


async def _over(stage: Stage, job: Job) -> None:
    """Let the job's window pass."""
    await stage.lapse(max(0.0, job.expires_at - await stage.now()))


async def _handed_back(store: JobStore, claim: JobClaim) -> Job:
    await store.release_job(claim)
    return claim.job
