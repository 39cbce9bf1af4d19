from __future__ import annotations

import asyncio

import pytest

from headrace.domain.chunks import ChunkRef
from headrace.domain.jobs import Counts, FileProblem
from headrace.ports.job_store import Hold, JobClaim, JobStore
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make

_PROBLEM = FileProblem("duplicate_custom_id", "é stands twice", 7, "custom_id")


async def test_nothing_is_to_be_planned_where_there_is_no_job(store: JobStore) -> None:
    assert await store.claim_job("p", make.LONG_S) is None


async def test_a_job_is_planned_by_one_at_a_time(store: JobStore) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store, "p1")
    assert (claim.job.id, claim.job.state, claim.holder) == (job.id, "validating", "p1")
    assert await store.claim_job("p2", make.LONG_S) is None


async def test_of_many_who_claim_a_job_one_has_it(stage: Stage) -> None:
    await make.created(stage.store)
    stores = [stage.store, await stage.another()]
    claims = await asyncio.gather(
        *(stores[n % 2].claim_job(f"p{n}", make.LONG_S) for n in range(16))
    )
    assert sum(claim is not None for claim in claims) == 1


async def test_of_many_who_claim_many_jobs_each_has_one(stage: Stage) -> None:
    jobs = {(await make.created(stage.store)).id for _ in range(8)}
    stores = [stage.store, await stage.another()]
    found: set[str] = set()
    # who finds all taken at the moment asks again, as a planner does
    for _ in range(8):
        claims = await asyncio.gather(
            *(stores[n % 2].claim_job(f"p{n}", make.LONG_S) for n in range(8))
        )
        new = [claim.job.id for claim in claims if claim is not None]
        assert len(set(new)) == len(new)
        assert found.isdisjoint(new)
        found.update(new)
        if found == jobs:
            break
    assert found == jobs


async def test_a_job_whose_planner_is_silent_is_another_s(stage: Stage) -> None:
    store = stage.store
    job = await make.created(store)
    silent = await make.claimed_job(store, "p1", 0.05)
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "p2")
    assert claim.job.id == job.id
    assert claim.attempt > silent.attempt


async def test_a_planner_that_renews_keeps_its_job(stage: Stage) -> None:
    store = stage.store
    await make.created(store)
    claim = await make.claimed_job(store, "p1", 0.05)
    assert await store.renew_job(claim, make.LONG_S)
    await stage.lapse(0.1)
    assert await store.claim_job("p2", make.LONG_S) is None
    assert await store.renew_job(claim, make.LONG_S)


async def test_a_planner_that_is_late_goes_on_if_nobody_took_over(stage: Stage) -> None:
    store = stage.store
    job = await make.created(store)
    claim = await make.claimed_job(store, "p1", 0.05)
    await stage.lapse(0.05)
    assert await store.renew_job(claim, make.LONG_S)
    assert await store.claim_job("p2", make.LONG_S) is None
    assert await store.add_chunks(claim, make.spans(1), first=0)
    assert await store.planned(claim, chunks=1, rows=10) == await make.read(store, job)


async def test_a_job_that_is_handed_back_is_another_s_at_once(store: JobStore) -> None:
    job = await make.created(store)
    first = await make.claimed_job(store, "p1")
    await store.release_job(first)
    assert not await store.renew_job(first, make.LONG_S)
    assert not await store.add_chunks(first, make.spans(1), first=0)
    second = await make.claimed_job(store, "p2")
    assert second.job.id == job.id
    await store.release_job(first)  # which is no longer its to hand back
    assert await store.renew_job(second, make.LONG_S)


async def test_who_lost_a_job_changes_nothing_of_it(stage: Stage) -> None:
    store = stage.store
    await make.created(store)
    lost = await make.claimed_job(store, "p1", 0.05)
    assert await store.add_chunks(lost, make.spans(1), first=0)
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "p2")
    assert await store.add_chunks(claim, make.spans(2, rows=5), first=0)
    before, chunks = await make.read(store, claim.job), await make.chunks_of(store, claim.job)
    output = make.file(purpose="batch_output")

    assert not await store.renew_job(lost, make.LONG_S)
    assert not await store.add_chunks(lost, make.spans(3), first=0)
    assert not await store.add_chunks(lost, make.spans(3, first=2), first=2)
    assert await store.planned(lost, chunks=2, rows=10) is None
    assert await store.planned(lost, chunks=3, rows=30, spans=make.spans(3)) is None
    assert await store.refuse(lost, [_PROBLEM]) is None
    assert await store.finish(lost, output=output, errors=None, rows_failed=0) is None
    await store.release_job(lost)

    assert await make.read(store, claim.job) == before
    assert await make.chunks_of(store, claim.job) == chunks
    assert await store.claim_job("p3", make.LONG_S) is None
    assert await store.planned(claim, chunks=2, rows=10) is not None


async def test_one_who_claims_again_is_not_who_it_was(stage: Stage) -> None:
    """A process that was paused, and whose other half went on under the same name."""
    store = stage.store
    await make.created(store)
    lost = await make.claimed_job(store, "p1", 0.05)
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "p1")
    assert not await store.renew_job(lost, make.LONG_S)
    assert await store.refuse(lost, [_PROBLEM]) is None
    assert await store.renew_job(claim, make.LONG_S)


async def test_chunks_are_added_some_at_a_time_and_come_in_order(store: JobStore) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    wanted = make.spans(450, rows=3)
    for first in range(0, 450, 150):
        assert await store.add_chunks(claim, wanted[first : first + 150], first=first)
    planned = await store.planned(claim, chunks=450, rows=1350)
    assert planned is not None
    assert planned == await make.read(store, job)
    assert (planned.chunks, planned.open_chunks) == (450, 450)
    assert planned.counts == Counts(total=1350)
    chunks = await make.chunks_of(store, job)
    assert [chunk.span for chunk in chunks] == wanted
    assert [chunk.ref.index for chunk in chunks] == list(range(450))
    assert {(c.ref.job, c.state, c.attempt, c.failures) for c in chunks} == {
        (job.id, "waiting", 0, 0)
    }


async def test_planning_anew_forgets_the_chunks_before(stage: Stage) -> None:
    store = stage.store
    job = await make.created(store)
    first = await make.claimed_job(store, "p1", 0.05)
    assert await store.add_chunks(first, make.spans(5), first=0)
    await stage.lapse(0.05)
    second = await make.claimed_job(store, "p2")
    assert await store.add_chunks(second, [], first=0)
    assert not await make.chunks_of(store, job)
    wanted = make.spans(2, rows=7)
    assert await store.add_chunks(second, wanted[:1], first=0)
    assert await store.add_chunks(second, wanted[1:], first=1)
    assert await store.planned(second, chunks=2, rows=14)
    assert [chunk.span for chunk in await make.chunks_of(store, job)] == wanted


async def test_a_job_that_is_not_planned_yet_has_nothing_to_work_on(store: JobStore) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    await store.add_chunks(claim, make.spans(2), first=0)
    assert not await store.queue_chunks(by="p", window=10, shared=True)
    ref = (await make.chunks_of(store, job))[0].ref
    assert await store.claim_chunk(ref, "w", make.LONG_S) is None
    assert not await store.bury_chunk(ref, 0)


async def test_a_planned_job_is_in_progress_and_nobody_s(store: JobStore) -> None:
    await make.created(store)
    claim = await make.claimed_job(store)
    await store.add_chunks(claim, make.spans(2), first=0)
    job = await store.planned(claim, chunks=2, rows=20)
    assert job is not None
    assert job.state == "in_progress"
    assert job.timeline.in_progress_at is not None
    assert job.timeline.in_progress_at >= job.timeline.created_at
    assert job.revision > claim.job.revision
    assert not await store.renew_job(claim, make.LONG_S)
    assert not await store.add_chunks(claim, [], first=0)
    assert await store.claim_job("p2", make.LONG_S) is None
    assert len(await make.chunks_of(store, job)) == 2


async def test_a_refused_job_has_failed_with_what_is_wrong(store: JobStore) -> None:
    created = await make.created(store)
    claim = await make.claimed_job(store)
    await store.add_chunks(claim, make.spans(2), first=0)
    problems = [_PROBLEM, FileProblem("empty_file", "the file has no rows")]
    job = await store.refuse(claim, problems)
    assert job is not None
    assert job == await make.read(store, created)
    assert job.state == "failed"
    assert job.problems == tuple(problems)
    assert job.timeline.failed_at is not None
    assert job.revision > claim.job.revision
    assert await store.claim_job("p2", make.LONG_S) is None
    assert not await store.queue_chunks(by="p", window=10, shared=True)
    assert (await store.cancel_job("acme", job.id)) == job
    await store.delete_file("acme", job.input_file)
    assert job.input_key in await store.take_garbage(10)


async def test_a_job_that_is_cancelled_before_it_is_planned_is_still_planned(
    store: JobStore,
) -> None:
    job = await make.created(store)
    cancelled = await store.cancel_job("acme", job.id)
    assert (cancelled.state, cancelled.ending) == ("cancelling", "cancelled")
    claim = await make.claimed_job(store)
    assert claim.job == cancelled
    assert await store.add_chunks(claim, [], first=0)
    planned = await store.planned(claim, chunks=0, rows=0)
    assert planned is not None
    assert planned.state == "cancelling"
    finishing = await make.claimed_job(store, "f")
    ended = await store.finish(finishing, output=None, errors=None, rows_failed=0)
    assert ended is not None
    assert (ended.state, ended.counts) == ("cancelled", Counts())


async def test_the_chunks_of_a_job_that_is_cancelled_while_it_is_planned_are_skipped(
    store: JobStore,
) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    assert await store.add_chunks(claim, make.spans(2), first=0)
    await store.cancel_job("acme", job.id)
    assert await store.claim_job("p2", make.LONG_S) is None  # it is planned still
    assert await store.add_chunks(claim, make.spans(1, first=2), first=2)
    planned = await store.planned(claim, chunks=3, rows=30)
    assert planned is not None
    assert (planned.state, planned.open_chunks, planned.counts.total) == ("cancelling", 0, 30)
    assert await make.states_of(store, job) == ["skipped"] * 3
    assert not await store.queue_chunks(by="p", window=10, shared=True)
    ended = await make.ended(store, job)
    assert (ended.state, ended.counts) == ("cancelled", Counts(30, 0, 30))


# --- the last chunks, told with the plan --------------------------------------------------------


async def test_the_last_chunks_may_come_with_the_plan(stage: Stage) -> None:
    store, wanted = stage.store, make.spans(3, rows=7)
    job = await make.created(store)
    first = await make.claimed_job(store, "p1", 0.05)
    assert await store.add_chunks(first, make.spans(5), first=0)  # a planning that came to no end
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "p2")
    planned = await store.planned(claim, chunks=3, rows=21, spans=wanted)
    assert planned == await make.read(store, job)
    assert planned is not None
    assert (planned.state, planned.open_chunks) == ("in_progress", 3)
    assert [chunk.span for chunk in await make.chunks_of(store, job)] == wanted
    assert await store.planned(claim, chunks=3, rows=21, spans=wanted) is None

    job = await make.created(store)
    claim = await make.claimed_job(store)
    assert await store.add_chunks(claim, wanted[:2], first=0)
    assert await store.planned(claim, chunks=3, rows=21, spans=wanted[2:])
    assert [chunk.span for chunk in await make.chunks_of(store, job)] == wanted


@pytest.mark.parametrize(("chunks", "rows"), [(3, 30), (2, 19)])
async def test_a_plan_that_does_not_add_up_changes_nothing(
    store: JobStore, chunks: int, rows: int
) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    with pytest.raises(ValueError, match=job.id):
        await store.planned(claim, chunks=chunks, rows=rows, spans=make.spans(2))
    assert (await make.read(store, job)).state == "validating"
    assert not await make.chunks_of(store, job)


async def test_the_chunks_of_a_plan_for_a_job_that_was_cancelled_are_skipped(
    store: JobStore,
) -> None:
    job = await make.created(store)
    claim = await make.claimed_job(store)
    await store.cancel_job(job.tenant, job.id)
    planned = await store.planned(claim, chunks=2, rows=20, spans=make.spans(2))
    assert planned is not None
    assert (planned.state, planned.open_chunks) == ("cancelling", 0)
    assert await make.states_of(store, job) == ["skipped", "skipped"]


# --- claimed in the change that makes it ready ---------------------------------------------------


async def test_a_job_may_be_claimed_by_its_creation(stage: Stage) -> None:
    store, hold = stage.store, Hold("here", 0.05)
    job = await make.created(store, hold=hold)
    assert job == await make.read(store, job)
    assert await store.claim_job("there", make.LONG_S) is None
    claim = JobClaim.of_new(job, hold)
    assert await store.renew_job(claim, 0.05)
    assert await store.add_chunks(claim, make.spans(1), first=0)
    await stage.lapse(0.05)
    other = await make.claimed_job(store, "there")
    assert (other.attempt, other.to) == (2, "plan")
    assert not await store.renew_job(claim, make.LONG_S)
    assert await store.planned(claim, chunks=1, rows=10) is None


async def test_a_job_that_was_claimed_by_its_creation_can_be_handed_back(store: JobStore) -> None:
    hold = Hold("here", make.LONG_S)
    job = await make.created(store, hold=hold)
    await store.release_job(JobClaim.of_new(job, hold))
    assert (await make.claimed_job(store, "there")).job.id == job.id


async def test_a_job_may_be_claimed_with_its_last_chunk(stage: Stage) -> None:
    store, hold = stage.store, Hold("here", 0.05)
    job = await make.planned(store, chunks=2)
    claims = []
    for index in (1, 0):
        claimed = await make.claimed(store, job, index)
        done = await store.complete_chunk(claimed.claim, make.parts(claimed), hold=hold)
        assert done is not None
        claims.append(done.claim)
    none, claim = claims
    assert none is None
    assert claim is not None
    assert (claim.job, claim.to, claim.chunks) == (await make.read(store, job), "finish", ())
    assert claim.job.state == "finalizing"
    assert await store.claim_job("there", make.LONG_S) is None
    assert await store.renew_job(claim, 0.05)
    await stage.lapse(0.05)
    other = await make.claimed_job(store, "there")
    assert other.attempt == claim.attempt + 1
    assert await make.finished(store, claim) is None
    assert await make.finished(store, other) is not None


async def test_the_claim_of_a_job_with_one_chunk_tells_of_it(store: JobStore) -> None:
    job = await make.planned(store, chunks=1)
    claimed = await make.claimed(store, job)
    hold = Hold("here", make.LONG_S)
    done = await store.complete_chunk(claimed.claim, make.parts(claimed, failed=3), hold=hold)
    assert done is not None
    assert done.claim is not None
    assert list(done.claim.chunks) == await make.chunks_of(store, job)
    assert await make.finished(store, done.claim) is not None


async def test_who_lost_a_chunk_is_not_given_its_job(stage: Stage) -> None:
    store = stage.store
    job = await make.planned(store, chunks=1)
    lost = await make.claimed(store, job, lease_s=0.05)
    await stage.lapse(0.05)
    await store.release_overdue(10)
    hold = Hold("here", make.LONG_S)
    assert await store.complete_chunk(lost.claim, make.parts(lost), hold=hold) is None
    assert await store.claim_job("there", make.LONG_S) is None  # it has a chunk that is open


async def test_a_cancelled_job_may_be_claimed_with_its_last_chunk(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    claimed = await make.claimed(store, job)
    await store.cancel_job(job.tenant, job.id)
    hold = Hold("here", make.LONG_S)
    done = await store.complete_chunk(claimed.claim, make.parts(claimed), hold=hold)
    assert done is not None
    assert done.claim is not None
    assert (done.claim.job.state, done.claim.to) == ("cancelling", "finish")


# --- whose job is next ---------------------------------------------------------------------------

_LARGE = 50_000_000


async def _in_turn(store: JobStore) -> list[str]:
    """The ids of all jobs, in the order in which they may be had."""
    order = []
    while (claim := await store.claim_job("p", make.LONG_S)) is not None:
        order.append(claim.job.id)
    return order


async def test_tenants_take_turns_to_have_their_jobs_planned(store: JobStore) -> None:
    many = [(await make.created(store, input_bytes=_LARGE)).id for _ in range(5)]
    other = [(await make.created(store, tenant="b", input_bytes=_LARGE)).id for _ in range(2)]
    small = (await make.created(store, tenant="c", input_bytes=100)).id
    assert await _in_turn(store) == [small, many[0], other[0], many[1], other[1], *many[2:]]


async def test_who_had_nothing_to_do_has_no_more_than_its_turns_now(store: JobStore) -> None:
    for _ in range(3):
        await make.planned(store, input_bytes=_LARGE)
    first = (await make.created(store, input_bytes=_LARGE)).id
    other = [(await make.created(store, tenant="b", input_bytes=_LARGE)).id for _ in range(2)]
    assert await _in_turn(store) == [first, *other]


async def test_who_had_a_job_in_hand_from_its_creation_on_has_had_a_turn(store: JobStore) -> None:
    await make.created(store, input_bytes=_LARGE, hold=Hold("here", make.LONG_S))
    mine = (await make.created(store, input_bytes=_LARGE)).id
    other = (await make.created(store, tenant="b", input_bytes=_LARGE)).id
    assert await _in_turn(store) == [other, mine]


async def test_jobs_of_large_files_can_be_left_to_others(store: JobStore) -> None:
    large = await make.created(store, input_bytes=1001)
    assert await store.claim_job("p", make.LONG_S, most_bytes=1000) is None
    small = await make.created(store, input_bytes=1000)
    claim = await store.claim_job("p", make.LONG_S, most_bytes=1000)
    assert claim is not None
    assert claim.job.id == small.id
    assert await store.claim_job("p", make.LONG_S, most_bytes=1000) is None
    assert (await make.claimed_job(store)).job.id == large.id


async def test_nothing_is_large_of_a_job_that_was_ended_before_it_was_planned(
    store: JobStore,
) -> None:
    await make.created(store, input_bytes=_LARGE)
    cancelled = await make.created(store, input_bytes=_LARGE)
    await store.cancel_job(cancelled.tenant, cancelled.id)
    claim = await store.claim_job("p", make.LONG_S, most_bytes=1000)
    assert claim is not None
    assert claim.job.id == cancelled.id


async def test_a_job_to_finish_comes_before_those_to_plan(store: JobStore) -> None:
    done = await make.planned(store, chunks=1, input_bytes=_LARGE)
    await make.created(store, tenant="b", input_bytes=1)
    await make.run(store, [ChunkRef(done.id, 0)])
    claim = await make.claimed_job(store)
    assert (claim.job.id, claim.to) == (done.id, "finish")


async def test_tenants_take_turns_to_have_their_jobs_finished(store: JobStore) -> None:
    ready: dict[str, list[str]] = {}
    for tenant in ("a", "a", "a", "a", "b", "b", "c"):
        job = await make.planned(store, chunks=1, tenant=tenant)
        ready.setdefault(tenant, []).append(job.id)
    for jobs in ready.values():
        await make.run(store, [ChunkRef(id_, 0) for id_ in jobs])
    a, b, c = ready.values()
    assert await _in_turn(store) == [a[0], b[0], c[0], a[1], b[1], a[2], a[3]]


async def test_tenants_take_turns_where_their_jobs_are_cancelled(store: JobStore) -> None:
    ready: dict[str, list[str]] = {}
    for tenant in ("a", "a", "a", "b"):
        job = await make.planned(store, chunks=2, tenant=tenant)
        ready.setdefault(tenant, []).append(job.id)
        await make.planned(store, tenant=tenant)  # which goes on
    for tenant, jobs in ready.items():
        for id_ in jobs:
            await store.cancel_job(tenant, id_)
    a, b = ready.values()
    assert await _in_turn(store) == [a[0], b[0], a[1], a[2]]


# --- failures ------------------------------------------------------------------------------------


async def test_failures_to_plan_a_job_and_to_finish_it_are_counted_apart(stage: Stage) -> None:
    store = stage.store
    job = await make.created(store)
    for failures in range(3):
        claim = await make.claimed_job(store)
        assert claim.failures == failures
        assert await store.renew_job(claim, 0.01, failed=True)
        await stage.lapse(0.01)
    claim = await make.claimed_job(store)
    assert await store.renew_job(claim, make.LONG_S)  # which is none
    await store.release_job(claim)
    claim = await make.claimed_job(store)
    assert claim.failures == 3
    assert await store.planned(claim, chunks=1, rows=10, spans=make.spans(1))
    await make.run(store, [ChunkRef(job.id, 0)])
    claim = await make.claimed_job(store)
    assert (claim.to, claim.failures) == ("finish", 0)
    assert await store.renew_job(claim, 0.01, failed=True)
    await stage.lapse(0.01)
    assert (await make.claimed_job(store)).failures == 1


async def test_who_lost_a_job_counts_no_failure_of_it(stage: Stage) -> None:
    store = stage.store
    await make.created(store)
    lost = await make.claimed_job(store, "p1", 0.05)
    await stage.lapse(0.05)
    claim = await make.claimed_job(store, "p2")
    assert not await store.renew_job(lost, make.LONG_S, failed=True)
    await store.release_job(claim)
    assert (await make.claimed_job(store)).failures == 0
