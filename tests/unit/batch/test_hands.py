from __future__ import annotations

import asyncio
import logging

import pytest

from headrace.batch.hands import Hands
from headrace.domain.errors import StoreUnavailable
from headrace.domain.jobs import Job
from tests.support import job_makers
from tests.support.batch_core import Core, failing, some_rows
from tests.support.waiting import until


async def _done(core: Core) -> Job:
    """A job whose chunks are done."""
    job = await core.planned(some_rows(2))
    await core.work(job)
    return job


async def test_a_job_is_planned_and_then_finished() -> None:
    core = Core()
    job = await core.job(some_rows(2))
    assert await core.hands.take()
    assert (await core.read(job)).state == "in_progress"
    assert not await core.hands.take()
    await core.work(await core.read(job))
    assert await core.hands.take()
    assert (await core.read(job)).state == "completed"
    assert not await core.hands.take()


async def test_jobs_that_ended_are_counted_by_state() -> None:
    core = Core()
    await core.job(b"no row")
    assert await core.hands.take()
    await _done(core)
    assert await core.hands.take()
    for state in ("failed", "completed"):
        assert core.value(f'headrace_batch_jobs_total{{state="{state}"}}') == 1


async def test_a_job_that_cannot_be_finished_is_nobodys_for_longer_and_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core(lease_s=15.0)
    job = await _done(core)
    core.objects.objects.clear()
    waits = []
    for _ in range(6):
        assert await core.hands.take()
        begun = core.now
        while not core.store.calls.get("claim_job") or not await _is_free(core):
            core.now += 1.0
        waits.append(core.now - begun)
    assert waits == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert (await core.read(job)).state == "finalizing"
    assert core.metrics.job_failures.value == 6
    assert len([r for r in caplog.records if job.id in r.getMessage()]) == 6


async def _is_free(core: Core) -> bool:
    """Whether somebody could claim a job now; nobody does."""
    kept = next(iter(core.store._kept.open.values()))  # noqa: SLF001 - claims would count
    return kept.until <= core.now


async def test_a_job_that_cannot_be_finished_does_not_hold_up_the_others() -> None:
    core = Core()
    await _done(core)
    core.objects.objects.clear()
    later = await core.job(some_rows(1))
    assert await core.hands.take()
    assert await core.hands.take()
    assert (await core.read(later)).state == "in_progress"


async def test_what_does_not_add_up_is_told_as_a_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core()
    job = await _done(core)
    for key in [key for key in core.objects.objects if key.endswith("output.jsonl")]:
        core.objects.objects[key] += b"more"
    assert await core.hands.take()
    (record,) = [r for r in caplog.records if job.id in r.getMessage()]
    assert record.levelno == logging.ERROR
    assert (await core.read(job)).state == "finalizing"


async def test_a_defect_in_the_work_on_one_job_is_logged_and_the_job_stays(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Core()
    job = await core.job(some_rows(1))

    async def broken(_: object) -> Job:
        raise RuntimeError("a defect")

    monkeypatch.setattr(core.planner, "plan", broken)
    assert await core.hands.take()
    assert "a defect" in caplog.text
    monkeypatch.undo()
    assert not await core.hands.take()
    core.now += 1.0
    assert await core.hands.take()
    assert (await core.read(job)).state == "in_progress"


async def test_a_cancelled_process_hands_its_job_back_at_once() -> None:
    core = Core()
    job = await core.job(some_rows(1))
    reading = asyncio.Event()

    async def stuck(_: str) -> None:
        reading.set()
        await asyncio.Event().wait()

    core.objects.gate = stuck
    taking = asyncio.create_task(core.hands.take())
    await reading.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    claim = await job_makers.claimed_job(core.store, "another")
    assert claim.job.id == job.id


@pytest.mark.parametrize("name", ["add_chunks", "planned", "chunks", "finish"])
async def test_a_store_that_does_not_answer_delays_a_job(name: str) -> None:
    core = Core()
    job = await core.job(some_rows(1))
    core.store.gate = failing(name, times=1)
    for _ in range(20):
        while await core.hands.take():
            pass
        now = await core.read(job)
        if now.state == "in_progress" and now.open_chunks:
            await core.work(now)
        core.now += 1.0
    assert (await core.read(job)).state == "completed"


async def test_a_job_that_cannot_even_be_put_off_is_free_when_its_lease_is_over() -> None:
    core = Core(lease_s=15.0)
    await core.job(some_rows(1))
    core.store.gate = failing("add_chunks", "renew_job", "release_job")
    assert await core.hands.take()
    core.store.gate = None
    assert not await core.hands.take()
    core.now += 15.0
    assert await core.hands.take()


# --- for ever ------------------------------------------------------------------------------------


async def test_it_goes_on_after_a_store_that_did_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.batch.hands._BACK_OFF_S", 0.0)
    core = Core()
    job = await core.job(some_rows(1))
    left: list[Exception] = [StoreUnavailable("no answer"), RuntimeError("a defect")]

    async def fail(name: str) -> None:
        if name == "claim_job" and left:
            raise left.pop()

    core.store.gate = fail
    running = asyncio.create_task(core.hands.run())

    async def is_planned() -> bool:
        return (await core.read(job)).state == "in_progress"

    await until(is_planned)
    running.cancel()
    assert core.told == 1


async def test_a_long_job_does_not_hold_up_one_that_was_told_of_together_with_it() -> None:
    """Several take jobs, and share one event: that one of them has seen it says nothing."""
    core = Core(look_s=10_000.0)
    hands: Hands = core.hands
    busy: list[str] = []

    async def stuck(name: str) -> None:
        if name == "read":
            busy.append(name)
            await asyncio.Event().wait()

    core.objects.gate = stuck
    running = [asyncio.create_task(hands.run()) for _ in range(3)]
    await until(lambda: core.store.calls.get("claim_job", 0) >= 1)
    first_claims = core.store.calls["claim_job"]
    await core.job(some_rows(1))
    await core.job(some_rows(1))

    async def once(name: str) -> None:
        """While one asks for a job, the event has been seen and the others sleep again."""
        if name == "claim_job" and core.store.calls[name] == first_claims + 1:
            hands.wanted.clear()

    core.store.gate = once
    hands.wanted.set()
    await until(lambda: len(busy) == 2)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_news_costs_one_look_however_many_take_jobs() -> None:
    core = Core(look_s=10_000.0)
    running = [asyncio.create_task(core.hands.run()) for _ in range(3)]
    for looks in (1, 2, 3):
        await until(lambda: core.store.calls.get("claim_job", 0) >= looks)  # noqa: B023
        for _ in range(50):
            await asyncio.sleep(0)
        assert core.store.calls["claim_job"] == looks
        core.hands.wanted.set()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
