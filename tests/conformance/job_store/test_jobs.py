from __future__ import annotations

import asyncio

import pytest

from headrace.domain.errors import IdempotencyAnswerLost, IdempotencyInFlight, NotFound, TenantBusy
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.domain.jobs import Counts, Job, Target
from headrace.ports.job_store import JobStore, PageQuery, Quotas
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make

_KEY = IdempotencyKey("acme", "ann", "k-1")
_ONCE = Once(_KEY, "h1")


async def test_a_new_job_is_validating_and_comes_back_as_it_was(stage: Stage) -> None:
    store = stage.store
    before = await stage.now()
    sent = make.job(
        await store.add_file(make.file(size_bytes=2**41)),
        target=Target(url="/v2/models/é/versions/2/infer", model="é", version="2"),
        metadata={"ключ": "𝄞", "empty": ""},
        priority=-10,
        max_attempts=7,
        retry_of="batch_0",
        window_s=3600,
        completion_window="1h",
    )
    job = await store.create_job(sent)
    assert await store.job("acme", sent.id) == job
    assert job.state == "validating"
    assert job.ending == "completed"
    assert job.counts == Counts()
    assert before - 2 <= job.timeline.created_at <= await stage.now() + 1
    assert job.expires_at == job.timeline.created_at + 3600
    assert job.timeline.in_progress_at is None
    for name in (
        "principal",
        "target",
        "input_file",
        "input_key",
        "input_bytes",
        "window_s",
        "completion_window",
        "metadata",
        "priority",
        "max_attempts",
        "retry_of",
    ):
        assert getattr(job, name) == getattr(sent, name), name
    assert job.revision > 0


async def test_other_tenants_see_nothing_of_a_job(store: JobStore) -> None:
    job = await make.created(store)
    with pytest.raises(NotFound):
        await store.job("other", job.id)
    with pytest.raises(NotFound):
        await store.cancel_job("other", job.id)
    assert not await store.jobs(PageQuery(tenant="other"))
    assert await make.read(store, job) == job


async def test_a_job_without_its_file_is_refused(store: JobStore) -> None:
    with pytest.raises(NotFound):
        await store.create_job(make.job(make.file()))
    file = await store.add_file(make.file(tenant="other"))
    with pytest.raises(NotFound):
        await store.create_job(make.job(file, tenant="acme"))
    assert not await store.jobs(PageQuery(tenant="acme"))


async def test_jobs_come_newest_first_page_by_page(store: JobStore) -> None:
    jobs = [await make.created(store) for _ in range(5)]
    assert list(await store.jobs(PageQuery(tenant="acme"))) == jobs[::-1]
    assert list(await store.jobs(PageQuery(tenant="acme", limit=2))) == jobs[:1:-1]
    page = await store.jobs(PageQuery(tenant="acme", limit=2, after=jobs[3].id))
    assert list(page) == [jobs[2], jobs[1], jobs[0]]
    page = await store.jobs(PageQuery(tenant="acme", limit=2, after=jobs[2].id))
    assert list(page) == [jobs[1], jobs[0]]
    page = await store.jobs(PageQuery(tenant="acme", limit=3, ascending=True))
    assert list(page) == jobs[:4]
    page = await store.jobs(PageQuery(tenant="acme", limit=1, after="batch_gone"))
    assert list(page) == [jobs[4], jobs[3]]


async def test_jobs_of_all_tenants_come_together_where_that_is_asked(store: JobStore) -> None:
    jobs = [await make.created(store, tenant=name) for name in ("acme", "b", "acme", "c")]
    assert list(await store.jobs(PageQuery(tenant="acme", everybody=True))) == jobs[::-1]
    page = PageQuery(tenant="acme", everybody=True, limit=2, after=jobs[3].id)
    assert list(await store.jobs(page)) == [jobs[2], jobs[1], jobs[0]]
    page = PageQuery(tenant="acme", everybody=True, state="validating", ascending=True)
    assert list(await store.jobs(page)) == jobs


async def test_jobs_are_listed_by_their_state(store: JobStore) -> None:
    running = await make.planned(store)
    new = [await make.created(store) for _ in range(2)]
    assert list(await store.jobs(PageQuery(tenant="acme", state="validating"))) == new[::-1]
    assert list(await store.jobs(PageQuery(tenant="acme", state="in_progress"))) == [running]
    assert not await store.jobs(PageQuery(tenant="acme", state="completed"))


async def test_a_tenant_has_so_many_jobs_at_a_time(store: JobStore) -> None:
    quotas = Quotas(jobs=2)
    first, second = [await _create(store, quotas) for _ in range(2)]
    with pytest.raises(TenantBusy):
        await _create(store, quotas)
    await _create(store, quotas, tenant="other")
    await store.cancel_job("acme", first.id)
    with pytest.raises(TenantBusy):  # until it has ended
        await _create(store, quotas)
    await make.ended(store, first)
    assert (await _create(store, quotas)).state == "validating"
    assert (await make.read(store, second)).state == "validating"


async def test_a_tenant_has_jobs_on_so_many_bytes_at_a_time(store: JobStore) -> None:
    quotas = Quotas(rows_bytes=2500)
    first = await _create(store, quotas, size_bytes=1000)
    await _create(store, quotas, size_bytes=1500)
    with pytest.raises(TenantBusy):
        await _create(store, quotas, size_bytes=1)
    await _create(store, quotas, tenant="other", size_bytes=2500)
    with pytest.raises(TenantBusy):
        await _create(store, quotas, tenant="third", size_bytes=2501)
    await store.cancel_job("acme", first.id)
    await make.ended(store, first)
    await _create(store, quotas, size_bytes=1000)


async def test_of_many_who_want_the_last_place_one_has_it(stage: Stage) -> None:
    stores = [stage.store, await stage.another()]
    files = [await stage.store.add_file(make.file()) for _ in range(16)]
    made = await asyncio.gather(
        *(
            stores[n % 2].create_job(make.job(file), quotas=Quotas(jobs=1))
            for n, file in enumerate(files)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(each, Job) for each in made) == 1
    assert sum(isinstance(each, TenantBusy) for each in made) == 15
    assert len(await stage.store.jobs(PageQuery(tenant="acme"))) == 1


async def test_a_job_is_created_once_with_the_mark_of_its_request(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1")
    job = await store.create_job(make.job(await store.add_file(make.file())), once=_ONCE)
    await keys.release(_KEY, holder="h1")
    with pytest.raises(IdempotencyAnswerLost):
        await keys.claim(_KEY, request="r", holder="h2")
    assert list(await store.jobs(PageQuery(tenant="acme"))) == [job]


async def test_whoever_lost_its_key_creates_no_job(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    await keys.claim(_KEY, request="r", holder="h2")
    file = await store.add_file(make.file())
    with pytest.raises(IdempotencyInFlight):
        await store.create_job(make.job(file), once=_ONCE)
    assert not await store.jobs(PageQuery(tenant="acme"))
    await store.delete_file("acme", file.id)  # which nothing reads


async def test_a_refused_job_leaves_its_key_open(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1")
    with pytest.raises(NotFound):
        await store.create_job(make.job(make.file()), once=_ONCE)
    await keys.release(_KEY, holder="h1")
    assert await keys.claim(_KEY, request="r", holder="h2") is None


async def test_what_there_is_to_do_is_counted_over_all_tenants(stage: Stage) -> None:
    store = stage.store
    nothing = await store.waiting()
    assert (nothing.jobs, nothing.chunks_waiting, nothing.chunks_running) == (0, 0, 0)
    assert nothing.oldest_s == 0
    job = await make.planned(store, chunks=4)
    await make.created(store, tenant="other")
    await make.claimed(store, job, 0)
    await make.run(store, [(await make.chunks_of(store, job))[1].ref])
    await stage.lapse(0.1)
    work = await store.waiting()
    assert (work.jobs, work.chunks_waiting, work.chunks_running) == (2, 2, 1)
    assert 0.09 <= work.oldest_s < 60


async def test_what_is_queued_is_waiting_still(store: JobStore) -> None:
    await make.planned(store, chunks=4)
    await store.queue_chunks(by="p", window=3, shared=True)
    assert (await store.waiting()).chunks_waiting == 4


async def test_what_has_ended_is_nothing_to_do(store: JobStore) -> None:
    job = await make.planned(store, chunks=2)
    await store.cancel_job("acme", job.id)
    await make.ended(store, job)
    work = await store.waiting()
    assert (work.jobs, work.chunks_waiting, work.chunks_running, work.oldest_s) == (0, 0, 0, 0)


async def test_processes_beside_each_other_see_the_same(stage: Stage) -> None:
    other = await stage.another()
    job = await make.planned(stage.store)
    assert await make.read(other, job) == job
    await make.run(other, [(await make.chunks_of(other, job))[0].ref])
    assert (await make.read(stage.store, job)).counts == Counts(30, 10, 0)


async def _create(
    store: JobStore, quotas: Quotas, *, tenant: str = "acme", size_bytes: int = 1
) -> Job:
    file = await store.add_file(make.file(tenant=tenant, size_bytes=size_bytes))
    return await store.create_job(make.job(file), quotas=quotas)
