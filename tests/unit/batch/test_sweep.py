from __future__ import annotations

import asyncio
from typing import Final

import pytest

from headrace.batch.ids import file_of
from headrace.batch.sweep import Sweep
from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import Conflict, InvalidRequest, StoreUnavailable
from headrace.domain.inference import InferRequest, InferResponse
from tests.support import job_makers
from tests.support.batch_core import Core, failing, ids_of, some_rows
from tests.support.memory_job_store import MemoryJobStore
from tests.support.memory_objects import MemoryObjects
from tests.support.waiting import until

MARK: Final = "batch/database"
DAY_S: Final = 86_400.0


def _left(core: Core) -> set[str]:
    """All objects but the mark."""
    return set(core.objects.objects) - {MARK}


async def test_an_upload_that_became_no_file_is_removed_once_it_is_old() -> None:
    core = Core()
    for n in range(7):
        await core.objects.put(f"batch/files/file-{n:026}", b"rows")
    core.now += DAY_S - 1
    assert await core.sweep.sweep() == 0
    assert len(_left(core)) == 7
    core.now += 1
    assert await core.sweep.sweep() == 7
    assert _left(core) == set()
    assert core.value("headrace_batch_orphans_total") == 7


async def test_what_a_zombie_wrote_for_a_job_that_has_ended_is_removed() -> None:
    core = Core(chunk_rows=1)
    job = await core.planned(some_rows(2))
    await core.work(job)
    done = await core.finish()
    await core.warden.garbage()
    files = _left(core)
    late = ["00000001-1-output.jsonl", "00000001-1-output.jsonl.0000", "00000000/not-run.jsonl"]
    for name in late:
        await core.objects.put(f"batch/jobs/{job.id}/{name}", b"late")
    error_file = f"batch/files/{file_of(job.id, 'errors')}"  # of a finisher that saw it otherwise
    await core.objects.put(error_file, b"late")
    core.now += DAY_S
    assert await core.sweep.sweep() == len(late) + 1
    assert _left(core) == files
    assert ids_of(await core.file(done, done.output_file)) == ["row-0", "row-1"]


async def test_files_stay_however_old_they_are() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await core.work(job)
    await core.finish()
    await core.warden.garbage()
    files = _left(core)
    core.now += 20 * DAY_S
    assert await core.sweep.sweep() == 0
    assert _left(core) == files


async def test_whatever_a_job_that_goes_on_may_need_stays_however_old_it_is() -> None:
    core = Core(chunk_rows=1)
    job = await core.planned(some_rows(3), window_s=10**7)
    await core.work(job, [0])
    claim = await job_makers.claimed(core.store, job, 1, "slow")
    await core.objects.put(f"batch/jobs/{job.id}/00000001-{claim.claim.attempt}-output.jsonl", b"x")
    before = _left(core)
    core.now += 100 * DAY_S
    assert await core.sweep.sweep() == 0
    assert _left(core) == before


async def test_the_input_of_a_job_that_goes_on_stays_though_its_file_has_expired() -> None:
    core = Core()
    source = await core.store.add_file(
        job_makers.file(key=f"batch/files/file-{1:026}", expires_at=int(core.now) + 10)
    )
    await core.objects.put(source.key, some_rows(1))
    await core.store.create_job(job_makers.job(source, window_s=10**7))
    core.now += 2 * DAY_S
    assert await core.store.take_garbage(10) == []
    assert await core.sweep.sweep() == 0
    assert _left(core) == {source.key}


async def test_a_file_that_was_joined_long_before_its_job_is_ended_stays() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await core.work(job)
    core.store.gate = failing("finish")
    with pytest.raises(StoreUnavailable):
        await core.finish()
    core.store.gate = None
    core.now += 2 * DAY_S
    assert await core.sweep.sweep() == 0
    done = await core.finish()
    assert len(await core.file(done, done.output_file)) > 0


async def test_objects_that_are_not_of_its_making_are_left_alone() -> None:
    core = Core()
    for key in (
        "artifacts/sha256/00/00", "batch/else/x", "batch/files/notes.txt", "batch/files/file-0/x",
        "batch/jobs/batch_0", "batch/jobs/else/x", "batch/files/file-Ä",
    ):  # fmt: skip
        core.objects.objects[key] = b"x"
    before = dict(core.objects.objects)
    assert await core.sweep.sweep() == 0
    assert core.objects.objects.keys() - {MARK} == before.keys()


async def test_objects_of_another_database_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    core, stranger = Core(), Core(sweep_s=0.001)
    await core.objects.put(f"batch/files/file-{1:026}", b"rows")
    assert await core.sweep.sweep() == 0
    core.now += DAY_S
    foreign = Sweep(
        store=stranger.store,
        objects=core.objects,
        settings=stranger.settings,
        metrics=stranger.metrics,
        chance=lambda: 0.0,
    )
    with pytest.raises(Conflict, match="batch/database"):
        await foreign.sweep()
    running = asyncio.create_task(foreign.run())
    await until(lambda: "another database's" in caplog.text)
    running.cancel()
    assert len(_left(core)) == 1
    beside = Sweep(
        store=MemoryJobStore(now=lambda: core.now, beside=core.store),
        objects=core.objects,
        settings=core.settings,
        metrics=core.metrics,
        chance=lambda: 0.0,
    )
    assert await beside.sweep() == 1


async def test_an_object_that_cannot_be_removed_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core()
    for n in range(3):
        core.objects.objects[f"batch/files/file-{n:026}"] = b"x"
    remove = core.objects.remove

    async def failing_once(key: str) -> None:
        if key.endswith("1"):
            raise StoreUnavailable("no answer")
        await remove(key)

    monkeypatch.setattr(core.objects, "remove", failing_once)
    assert await core.sweep.sweep() == 2
    assert _left(core) == {f"batch/files/file-{1:026}"}
    assert "no answer" in caplog.text
    monkeypatch.undo()
    assert await core.sweep.sweep() == 1


@pytest.mark.parametrize("name", ["keys", "needed", "database"])
async def test_nothing_is_removed_of_which_it_cannot_be_asked(name: str) -> None:
    core = Core()
    core.objects.objects[f"batch/files/file-{1:026}"] = b"x"
    core.store.gate = core.objects.gate = failing(name)
    with pytest.raises(StoreUnavailable):
        await core.sweep.sweep()
    assert len(_left(core)) == 1


# --- while others work ---------------------------------------------------------------------------


async def test_an_old_object_that_becomes_a_file_while_it_is_looked_at_stays() -> None:
    core = Core()
    key = f"batch/files/file-{1:026}"
    core.objects.objects[key] = b"rows"

    async def add(name: str) -> None:
        if name == "needed":
            core.store.gate = None
            await core.store.add_file(job_makers.file(key=key))

    core.store.gate = add
    assert await core.sweep.sweep() == 0
    assert _left(core) == {key}


def _sweeping_always(core: Core) -> list[int]:
    """Sweep, as another process, between any two steps; the answer counts what was removed."""
    removed = [0]
    objects = MemoryObjects(now=lambda: core.now)
    objects.objects, objects.written = core.objects.objects, core.objects.written
    beside = Sweep(
        store=MemoryJobStore(now=lambda: core.now, beside=core.store),
        objects=objects,
        settings=core.settings,
        metrics=core.metrics,
        chance=lambda: 0.0,
    )

    async def sweep(_: str) -> None:
        core.now += 1e-3  # so that all there is is old
        removed[0] += await beside.sweep()

    core.store.gate = core.store.after_gate = sweep
    core.objects.gate = core.objects.after_gate = sweep
    return removed


def _refuse_odd(request: InferRequest) -> InferResponse | None:
    if (request.content.inputs[0].array % 2 == 1).any():
        raise InvalidRequest("odd")
    return None


@pytest.mark.parametrize("how", ["completed", "cancelled", "expired"])
async def test_a_sweep_between_any_two_steps_of_a_job_takes_nothing_that_counts(how: str) -> None:
    core = Core(chunk_rows=2, orphan_age_s=1e-6)
    core.model.fails = _refuse_odd
    removed = _sweeping_always(core)
    job = await core.planned(some_rows(8))
    await core.work(job, [2, 0])
    assert await core.store.bury_chunk(ChunkRef(job.id, 1), 0)
    if how == "completed":
        await core.work(job, [3])
    elif how == "cancelled":
        await core.store.cancel_job(job.tenant, job.id)
    else:
        core.now += job.window_s
        await core.warden.windows()
    done = await core.finish()
    assert done.state == how
    told = ids_of(await core.file(done, done.output_file))
    told += ids_of(await core.file(done, done.error_file))
    assert sorted(told) == [f"row-{n}" for n in range(8)]
    assert all(not key.startswith("batch/jobs/") for key in core.objects.objects)
    assert removed[0] > 0  # the parts, once the job had ended


# --- again and again -----------------------------------------------------------------------------


@pytest.mark.parametrize(("chance", "first_s"), [(0.0, 360.0), (0.5, 1980.0), (1.0, 3600.0)])
async def test_processes_that_begin_together_do_not_sweep_together(
    chance: float, first_s: float
) -> None:
    core = Core()
    began: list[float] = []

    async def sleep(seconds: float) -> None:
        began.append(seconds)
        if len(began) == 3:
            raise asyncio.CancelledError

    sweep = Sweep(
        store=core.store,
        objects=core.objects,
        settings=core.settings,
        metrics=core.metrics,
        chance=lambda: chance,
        sleep=sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        await sweep.run()
    assert began == [pytest.approx(first_s), 3600.0, 3600.0]


async def test_a_sweep_that_fails_is_made_again_later(caplog: pytest.LogCaptureFixture) -> None:
    core = Core(sweep_s=0.001)
    core.objects.objects[f"batch/files/file-{1:026}"] = b"x"
    errors: list[Exception] = [StoreUnavailable("no answer"), RuntimeError("a defect")]

    async def fail(name: str) -> None:
        if name == "needed" and errors:
            raise errors.pop(0)

    core.store.gate = fail
    running = asyncio.create_task(core.sweep.run())
    await until(lambda: not _left(core))
    assert not running.done()
    running.cancel()
    assert "no answer" in caplog.text
    assert "a defect" in caplog.text


async def test_it_may_be_switched_off() -> None:
    core = Core(sweep_s=0.0)
    await core.sweep.run()
    assert core.store.calls == {}
    assert core.objects.objects == {}
