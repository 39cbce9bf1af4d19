from __future__ import annotations

import asyncio
import logging

import pytest

from headrace.batch.hands import Hands
from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import BatchInconsistent, StorageFull, StoreUnavailable
from headrace.domain.jobs import FINAL, Job
from headrace.ports.job_store import JobClaim
from tests.support import job_makers
from tests.support.batch_core import Core, failing, ids_of, some_rows
from tests.support.waiting import until

_START_S = 1_800_000_000.0  # when a core's clock begins


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


async def _tried_until_it_ends(core: Core, job: Job) -> Job:
    """Take the job again and again, as soon as it is free."""
    while (now := await core.read(job)).state not in FINAL:
        core.now += 0.0 if await core.hands.take() else 0.5
        assert core.now < _START_S + 3600, "it stays for ever"
    return now


@pytest.mark.parametrize("what", ["a part is gone", "a part was cut", "the input was cut"])
async def test_a_job_that_cannot_be_finished_is_tried_for_minutes_and_then_fails(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core(chunk_rows=2, lease_s=15.0)
    job = await core.planned(some_rows(6))
    await core.work(job, [0, 1])
    assert await core.store.bury_chunk(ChunkRef(job.id, 2), 0)
    objects = core.objects.objects
    part = next(key for key in objects if "/00000001-" in key)
    if what == "a part is gone":
        del objects[part]
    elif what == "a part was cut":
        objects[part] = objects[part][:-5]
    else:
        objects[job.input_key] = objects[job.input_key][:-200]

    done = await _tried_until_it_ends(core, job)

    assert 240 < core.now - _START_S < 400
    assert done.state == "failed"
    [problem] = done.problems
    assert problem.message.startswith("the batch could not be finished: ")
    assert "; 2 rows are told nowhere" in problem.message
    answers = ids_of(await core.file(done, done.output_file))
    if what == "the input was cut":
        assert problem.code == "batch_inconsistent"
        assert (answers, done.error_file) == ([f"row-{n}" for n in range(4)], "")
    else:
        assert answers == ["row-0", "row-1"]
        assert ids_of(await core.file(done, done.error_file)) == ["row-4", "row-5"]
        assert done.counts.failed == 2
    last = [record for record in caplog.records if "is given up" in record.getMessage()]
    assert [record.levelno for record in last] == [logging.ERROR]
    assert core.value('headrace_batch_jobs_total{state="failed"}') == 1


async def test_a_job_is_finished_whose_parts_come_back_while_it_is_tried() -> None:
    core = Core(max_job_failures=5)
    job = await _done(core)
    parts = dict(core.objects.objects)
    core.objects.objects.clear()
    for _ in range(4):
        assert await core.hands.take()
        assert (await core.read(job)).state == "finalizing"
        core.now += 60.0
    core.objects.objects.update(parts)
    assert (await _tried_until_it_ends(core, job)).state == "completed"


@pytest.mark.parametrize("error", [RuntimeError("a defect"), BatchInconsistent("it is odd")])
async def test_a_job_that_cannot_be_planned_fails_after_as_many_tries(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core(max_job_failures=3)
    job = await core.job(some_rows(1))

    async def broken(_: object) -> Job:
        raise error

    monkeypatch.setattr(core.planner, "plan", broken)
    done = await _tried_until_it_ends(core, job)
    assert done.state == "failed"
    [problem] = done.problems
    assert problem.message.startswith("the batch could not be planned: ")
    assert ("internal error" in problem.message) == isinstance(error, RuntimeError)
    assert "given up after 3 failures" in caplog.text


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), StorageFull("no room")])
async def test_a_job_is_tried_to_its_windows_end_while_stores_fail_and_then_expires(
    error: Exception,
) -> None:
    core = Core(max_job_failures=2)
    job = await core.job(some_rows(1), window_s=3600)
    core.objects.gate = failing("read", error=error)
    for _ in range(100):
        core.now += 30.0
        assert await core.hands.take()
        assert (await core.read(job)).state == "validating"
    core.now += 600.0
    await core.store.expire_jobs(10)
    while await core.hands.take():
        pass
    assert (await core.read(job)).state == "expired"


async def test_failures_of_stores_neither_count_nor_end_a_job_whose_own_failures_do() -> None:
    core = Core(max_job_failures=2)
    job = await core.job(some_rows(1))
    odd, passing = BatchInconsistent("it is odd"), StoreUnavailable("no answer")
    for error, state in [(passing, "validating")] * 5 + [
        (odd, "validating"),
        (passing, "validating"),
        (odd, "failed"),
    ]:
        core.objects.gate = failing("read", error=error)
        core.now += 60.0
        assert await core.hands.take()
        assert (await core.read(job)).state == state


async def test_failures_while_it_was_planned_do_not_count_when_it_is_finished() -> None:
    core = Core(max_job_failures=3)
    job = await core.job(some_rows(2))
    core.objects.gate = failing("read", error=BatchInconsistent("it is odd"), times=2)
    while (await core.read(job)).state == "validating":
        core.now += 0.0 if await core.hands.take() else 0.5
    await core.work(await core.read(job))
    core.objects.gate = failing("join", error=BatchInconsistent("it is odd"), times=2)
    begun = core.now
    while (now := await core.read(job)).state not in FINAL:
        core.now += 0.0 if await core.hands.take() else 0.5
        assert core.now < begun + 3600
    assert now.state == "completed"


async def test_a_job_that_was_given_up_and_cannot_be_ended_is_tried_again() -> None:
    core = Core(max_job_failures=1)
    job = await _done(core)
    core.objects.objects.clear()
    core.store.gate = failing("finish", times=3)
    assert (await _tried_until_it_ends(core, job)).state == "failed"


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
    core = Core(chunk_rows=1)
    job = await core.job(some_rows(40))
    core.store.gate = failing(name, times=1)
    for _ in range(20):
        while await core.hands.take():
            pass
        now = await core.read(job)
        if now.state == "in_progress" and now.open_chunks:
            await core.work(now)
        core.now += 1.0
    assert (await core.read(job)).state == "completed"
    assert core.metrics.job_failures.value == 1


async def test_a_job_that_cannot_even_be_put_off_is_free_when_its_lease_is_over() -> None:
    core = Core(lease_s=15.0)
    await core.job(some_rows(1))
    core.store.gate = failing("planned", "renew_job", "release_job")
    assert await core.hands.take()
    core.store.gate = None
    assert not await core.hands.take()
    core.now += 15.0
    assert await core.hands.take()


# --- given ---------------------------------------------------------------------------------------


async def test_a_job_that_is_given_from_its_creation_on_is_never_looked_for() -> None:
    core = Core()
    taking = asyncio.create_task(core.hands.take_given())
    await asyncio.sleep(0)
    job = await core.given(some_rows(2))

    async def is_planned() -> bool:
        return (await core.read(job)).state == "in_progress"

    await until(is_planned)
    await core.work(await core.read(job))

    async def has_ended() -> bool:
        return (await core.read(job)).state == "completed"

    await until(has_ended)
    assert "claim_job" not in core.store.calls
    assert core.store.calls["chunks"] == 1  # the test's own question
    assert core.told == 1  # that there are chunks
    taking.cancel()


async def test_a_given_job_that_fails_is_put_off_and_the_next_one_is_taken() -> None:
    core = Core()
    taking = asyncio.create_task(core.hands.take_given())
    await asyncio.sleep(0)
    core.store.gate = failing("planned", times=1)
    first = await core.given(some_rows(2))
    await until(lambda: core.metrics.job_failures.value == 1)
    second = await core.given(some_rows(2))

    async def is_planned() -> bool:
        return (await core.read(second)).state == "in_progress"

    await until(is_planned)
    core.now += 1.0
    assert (await job_makers.claimed_job(core.store)).job.id == first.id
    taking.cancel()


async def test_a_process_that_ends_hands_back_what_it_was_given_and_has_not_begun() -> None:
    core = Core()
    taking = asyncio.create_task(core.hands.take_given())
    await asyncio.sleep(0)
    with core.hands.offer() as spare:
        assert spare is not None
        job = await job_makers.created(core.store, hold=spare.hold)
        taking.cancel()
        spare.give(JobClaim.of_new(job, spare.hold))
    await asyncio.gather(taking, return_exceptions=True)
    assert (await job_makers.claimed_job(core.store, "another")).job.id == job.id
    with core.hands.offer() as spare:
        assert spare is None


async def test_a_given_job_that_was_cancelled_is_looked_for_once_it_is_planned() -> None:
    core = Core(look_s=10_000.0)
    taking = [asyncio.create_task(core.hands.take_given()), asyncio.create_task(core.hands.run())]
    await until(lambda: not core.hands.wanted.is_set())
    reading = asyncio.Event()

    async def cancel(name: str) -> None:
        if name == "planned":
            core.store.gate = None
            await core.store.cancel_job(job.tenant, job.id)
            reading.set()

    core.store.gate = cancel
    job = await core.given(some_rows(2))
    await reading.wait()

    async def has_ended() -> bool:
        return (await core.read(job)).state == "cancelled"

    await until(has_ended)
    for task in taking:
        task.cancel()


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


async def _running(core: Core) -> list[asyncio.Task[None]]:
    """Two who take any job, and one who takes small ones alone."""
    running = [asyncio.create_task(core.hands.run()) for _ in range(2)]
    running.append(asyncio.create_task(core.hands.run_small()))
    await until(lambda: not core.hands.wanted.is_set())
    return running


async def test_a_small_job_is_planned_while_large_ones_have_all_other_places() -> None:
    core = Core(look_s=10_000.0, small_file_bytes=1000)
    running = await _running(core)
    stuck: list[str] = []

    async def stay(name: str) -> None:
        if name == "read" and len(stuck) < 2:
            stuck.append(name)
            await asyncio.Event().wait()

    core.objects.gate = stay
    large = [await core.job(some_rows(50)) for _ in range(5)]
    core.hands.wanted.set()
    await until(lambda: len(stuck) == 2)
    small = await core.job(some_rows(1))
    core.hands.wanted.set()

    async def is_planned() -> bool:
        return (await core.read(small)).state == "in_progress"

    await until(is_planned)
    assert {(await core.read(job)).state for job in large} == {"validating"}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_who_takes_small_jobs_alone_looks_for_none_while_others_have_time() -> None:
    core = Core(look_s=10_000.0)
    running = await _running(core)
    for looks in (2, 3, 4):
        core.hands.wanted.set()
        await until(lambda: core.store.calls.get("claim_job", 0) >= looks)  # noqa: B023
        for _ in range(50):
            await asyncio.sleep(0)
        assert core.store.calls["claim_job"] == looks
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
