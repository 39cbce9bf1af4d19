from __future__ import annotations

import asyncio

import pytest

from headrace.batch.job_leases import held
from headrace.domain.errors import StoreUnavailable
from headrace.ports.job_store import JobClaim
from tests.support import job_makers
from tests.support.batch_core import Core, failing
from tests.support.waiting import until

LEASE_S = 0.03


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
async def claim(core: Core) -> JobClaim:
    await core.job(b"")
    return await job_makers.claimed_job(core.store, lease_s=LEASE_S)


def _renewals(core: Core) -> int:
    return core.store.calls.get("renew_job", 0)


async def test_a_lease_is_renewed_until_the_block_is_left(core: Core, claim: JobClaim) -> None:
    async with held(core.store, claim, LEASE_S) as mine:
        await until(lambda: _renewals(core) >= 3)
        assert not mine.lost
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_lease_that_is_anothers_is_told(core: Core, claim: JobClaim) -> None:
    async with held(core.store, claim, LEASE_S) as mine:
        core.now += 10.0
        await job_makers.claimed_job(core.store, "another")
        await until(lambda: mine.lost)


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), RuntimeError("a defect")])
async def test_a_renewal_that_failed_is_tried_again(
    core: Core, claim: JobClaim, error: Exception
) -> None:
    left = [error]

    async def fail(name: str) -> None:
        if name == "renew_job" and left:
            raise left.pop()

    core.store.gate = fail
    async with held(core.store, claim, LEASE_S) as mine:
        await until(lambda: _renewals(core) >= 3)
        assert not mine.lost


async def test_what_the_block_raises_is_what_is_raised(core: Core, claim: JobClaim) -> None:
    async def work() -> None:
        async with held(core.store, claim, LEASE_S):
            await until(lambda: _renewals(core))
            raise KeyError

    core.store.gate = failing("renew_job")
    with pytest.raises(KeyError):
        await work()


async def test_a_cancel_while_the_block_is_being_left_gets_through(
    core: Core, claim: JobClaim
) -> None:
    renewing, leaving = asyncio.Event(), asyncio.Event()

    async def slow(name: str) -> None:
        if name == "renew_job":
            renewing.set()
            try:
                await asyncio.Event().wait()
            finally:
                leaving.set()
                for _ in range(20):  # as a driver that ends its transaction first
                    await asyncio.sleep(0)

    core.store.gate = slow

    async def work() -> None:
        async with held(core.store, claim, LEASE_S):
            await renewing.wait()

    working = asyncio.create_task(work())
    await leaving.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
