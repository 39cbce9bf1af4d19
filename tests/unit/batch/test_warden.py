from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import StoreUnavailable
from tests.support import job_makers
from tests.support.batch_core import Core, failing, some_rows
from tests.support.waiting import until

DUTIES = ["release_overdue", "requeue", "expire_jobs", "take_garbage"]


async def test_chunks_of_silent_workers_are_given_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core(chunk_rows=1)
    job = await core.planned(some_rows(2))
    await job_makers.claimed(core.store, job, 0, "silent", lease_s=15.0)
    await job_makers.claimed(core.store, job, 1, "alive", lease_s=60.0)
    core.now += 15.0
    assert await core.warden.leases() == 1
    first, second = await core.chunks(job)
    assert (first.state, first.failures) == ("waiting", 1)
    assert "silent" in first.story[0]
    assert second.state == "running"
    assert [r.__dict__["holder"] for r in caplog.records] == ["silent"]
    assert await core.warden.leases() == 0


async def test_jobs_end_with_their_windows() -> None:
    core = Core()
    job = await core.planned(some_rows(1))
    assert await core.warden.windows() == 0
    core.now += job.window_s
    assert await core.warden.windows() == 1
    assert (await core.read(job)).ending == "expired"


async def _garbage(core: Core, count: int = 3) -> None:
    """Objects that nobody needs."""
    for n in range(count):
        file = await core.store.add_file(job_makers.file(key=f"batch/files/old-{n}"))
        core.objects.objects[file.key] = b"x"
        await core.store.delete_file(file.tenant, file.id)


async def test_objects_that_nobody_needs_are_removed_and_forgotten() -> None:
    core = Core()
    await _garbage(core)
    assert await core.warden.garbage() == 3
    assert core.objects.objects == {}
    assert await core.warden.garbage() == 0


async def test_an_object_that_cannot_be_removed_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = Core()
    await _garbage(core)
    remove = core.objects.remove

    async def failing_once(key: str) -> None:
        if key.endswith("old-0"):
            raise StoreUnavailable("no answer")
        await remove(key)

    monkeypatch.setattr(core.objects, "remove", failing_once)
    assert await core.warden.garbage() == 2
    assert list(core.objects.objects) == ["batch/files/old-0"]
    assert "old-0" in caplog.text
    monkeypatch.undo()
    assert await core.warden.garbage() == 1
    assert core.objects.objects == {}


async def test_objects_are_removed_again_where_the_store_did_not_learn_of_it() -> None:
    core = Core()
    await _garbage(core)
    core.store.gate = failing("removed", times=1)
    with pytest.raises(StoreUnavailable):
        await core.warden.garbage()
    assert await core.warden.garbage() == 3


async def test_parts_of_a_job_that_ended_are_removed_and_its_files_stay() -> None:
    core = Core()
    job = await core.planned(some_rows(3))
    await core.work(job)
    done = await core.finish()
    assert await core.warden.garbage() == 1
    output = await core.store.file(done.tenant, done.output_file)
    assert set(core.objects.objects) == {job.input_key, output.key}


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), RuntimeError("a defect")])
@pytest.mark.parametrize("broken", DUTIES)
async def test_each_duty_is_done_though_another_fails(broken: str, error: Any) -> None:
    core = Core(chunk_rows=1)

    async def fail(name: str) -> None:
        if name == broken:
            raise error

    core.store.gate = fail
    running = asyncio.create_task(core.warden.run())
    await until(lambda: all(core.store.calls.get(name, 0) >= 3 for name in DUTIES))
    assert not running.done()
    running.cancel()


async def test_all_of_it_is_done_and_whoever_can_go_on_is_told() -> None:
    core = Core(chunk_rows=1)
    job = await core.planned(some_rows(2))
    await job_makers.claimed(core.store, job, 0, "silent", lease_s=15.0)
    await core.store.queue_chunks(by="silent", window=2, shared=True)
    core.now += core.settings.requeue_after_s
    running = asyncio.create_task(core.warden.run())
    await until(lambda: core.told >= 2)
    running.cancel()
    delivery = await core.queue.take()
    assert delivery.message is not None
    assert delivery.message.ref == ChunkRef(job.id, 1)
    assert [chunk.state for chunk in await core.chunks(job)] == ["waiting", "queued"]


async def test_nobody_is_told_where_there_was_nothing_to_do() -> None:
    core = Core()
    running = asyncio.create_task(core.warden.run())
    await until(lambda: core.store.calls.get("take_garbage", 0) >= 2)
    running.cancel()
    assert core.told == 0


async def test_much_garbage_does_not_wait_for_the_next_look() -> None:
    core = Core(look_s=10_000.0)
    await _garbage(core, 250)
    running = asyncio.create_task(core.warden.run())
    await until(lambda: core.objects.objects == {})
    running.cancel()
