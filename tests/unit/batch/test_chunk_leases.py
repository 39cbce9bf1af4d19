from __future__ import annotations

import asyncio

import pytest

from headrace.batch.chunk_leases import ChunkLeases
from headrace.domain.jobs import Job
from headrace.ports.job_store import ClaimedChunk
from tests.support import job_makers
from tests.support.batch_core import HOLDER, Core, failing, some_rows
from tests.support.waiting import until

LEASE_S = 15.0


@pytest.fixture
def core() -> Core:
    return Core(chunk_rows=1, lease_s=LEASE_S)


@pytest.fixture
async def job(core: Core) -> Job:
    return await core.planned(some_rows(3))


async def _claimed(core: Core, job: Job, index: int = 0) -> ClaimedChunk:
    return await job_makers.claimed(core.store, job, index, HOLDER, LEASE_S)


async def test_what_is_held_is_renewed_together(core: Core, job: Job) -> None:
    first, second = await _claimed(core, job, 0), await _claimed(core, job, 1)
    async with core.leases.kept(first.claim) as one, core.leases.kept(second.claim) as other:
        for _ in range(5):
            core.now += 10.0
            await core.leases.renew()
        assert core.store.calls["renew_chunks"] == 5
        assert not one.stopped
        assert not other.stopped
        assert await core.store.release_overdue(10) == []


async def test_what_is_held_no_more_is_not_renewed(core: Core, job: Job) -> None:
    claimed = await _claimed(core, job)
    async with core.leases.kept(claimed.claim):
        pass
    await core.leases.renew()
    assert "renew_chunks" not in core.store.calls
    core.now += LEASE_S
    assert len(await core.store.release_overdue(10)) == 1


async def test_a_lease_that_is_anothers_is_noticed_and_the_others_stay(
    core: Core, job: Job
) -> None:
    first, second = await _claimed(core, job, 0), await _claimed(core, job, 1)
    async with core.leases.kept(first.claim) as one, core.leases.kept(second.claim) as other:
        await core.store.release_chunk(first.claim)
        await core.leases.renew()
        assert (one.stopped, other.stopped) == (True, False)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_the_end_of_a_job_ends_the_leases_of_its_chunks(
    core: Core, job: Job, how: str
) -> None:
    claimed = await _claimed(core, job)
    async with core.leases.kept(claimed.claim) as lease:
        if how == "cancelled":
            await core.store.cancel_job(job.tenant, job.id)
        else:
            core.now += job.window_s
            await core.store.expire_jobs(10)
        await core.leases.renew()
        assert lease.stopped


async def test_a_store_that_does_not_answer_is_asked_again_until_the_lease_is_over(
    core: Core, job: Job
) -> None:
    claimed = await _claimed(core, job)
    async with core.leases.kept(claimed.claim) as lease:
        core.store.gate = failing("renew_chunks")
        core.now += LEASE_S - 1.0
        await core.leases.renew()
        assert not lease.stopped
        core.store.gate = None
        await core.leases.renew()
        core.store.gate = failing("renew_chunks")
        core.now += LEASE_S - 1.0
        await core.leases.renew()
        assert not lease.stopped
        core.now += 1.0
        await core.leases.renew()
        assert lease.stopped


async def test_a_lease_counts_from_when_its_renewal_was_asked_for(core: Core, job: Job) -> None:
    claimed = await _claimed(core, job)
    begun = core.now

    async def slow(_: str) -> None:
        core.now += 5.0

    async with core.leases.kept(claimed.claim) as lease:
        core.store.after_gate = slow
        await core.leases.renew()
        assert lease.until == begun + LEASE_S


async def test_what_was_given_up_stays_so(core: Core, job: Job) -> None:
    claimed = await _claimed(core, job)
    async with core.leases.kept(claimed.claim) as lease:
        core.store.gate = failing("renew_chunks")
        core.now += LEASE_S
        await core.leases.renew()
        core.store.gate = None
        await core.leases.renew()
        assert lease.stopped


async def test_it_goes_on_whatever_a_renewal_runs_into(
    core: Core, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    claimed = await _claimed(core, job)
    left: list[Exception] = [RuntimeError("a defect")]

    async def fail(name: str) -> None:
        if name == "renew_chunks" and left:
            raise left.pop()

    core.store.gate = fail
    async with core.leases.kept(claimed.claim) as lease:
        running = asyncio.create_task(core.leases.run())
        await until(lambda: core.store.calls.get("renew_chunks", 0) >= 3)
        running.cancel()
        assert not lease.stopped
    assert "a defect" in caplog.text


@pytest.mark.parametrize(
    ("lease_s", "look_s"), [(15.0, 0.001), (0.003, 10_000.0)], ids=["a look", "a third of a lease"]
)
async def test_the_end_of_a_job_is_noticed_with_the_next_look(
    core: Core, job: Job, lease_s: float, look_s: float
) -> None:
    leases = ChunkLeases(store=core.store, lease_s=lease_s, look_s=look_s, clock=lambda: core.now)
    claimed = await _claimed(core, job)
    running = asyncio.create_task(leases.run())
    async with leases.kept(claimed.claim) as lease:
        await core.store.cancel_job(job.tenant, job.id)
        await until(lambda: lease.stopped)
    running.cancel()
