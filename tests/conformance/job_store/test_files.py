from __future__ import annotations

import asyncio

import pytest

from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import Conflict, IdempotencyAnswerLost, IdempotencyInFlight, NotFound
from headrace.domain.files import File
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.domain.jobs import FileProblem
from headrace.domain.parameters import FilesFull
from headrace.ports.job_store import JobStore, PageQuery, Quotas, Used
from tests.conformance.job_store.conftest import Stage
from tests.support import job_makers as make

_KEY = IdempotencyKey("acme", "ann", "k-1")
_ONCE = Once(_KEY, "h1")


async def test_a_file_comes_back_as_it_was_with_its_time(stage: Stage) -> None:
    before = await stage.now()
    sent = make.file(
        filename="é ✓ 𝄞.jsonl", size_bytes=2**40, purpose="batch_output", expires_at=2**40
    )
    kept = await stage.store.add_file(sent)
    assert before - 2 <= kept.created_at <= await stage.now() + 1
    assert await stage.store.file("acme", sent.id) == kept
    assert (kept.id, kept.filename, kept.size_bytes) == (sent.id, sent.filename, 2**40)
    assert (kept.key, kept.purpose, kept.expires_at) == (sent.key, "batch_output", 2**40)


async def test_other_tenants_see_nothing_of_a_file(store: JobStore) -> None:
    file = await store.add_file(make.file())
    with pytest.raises(NotFound):
        await store.file("other", file.id)
    with pytest.raises(NotFound):
        await store.delete_file("other", file.id)
    assert await store.files(PageQuery(tenant="other")) == []
    assert await store.file("acme", file.id) == file


async def test_files_come_newest_first_or_oldest_first(store: JobStore) -> None:
    files = [await store.add_file(make.file()) for _ in range(5)]
    assert list(await store.files(PageQuery(tenant="acme"))) == files[::-1]
    assert list(await store.files(PageQuery(tenant="acme", ascending=True))) == files


async def test_a_page_of_files_has_one_more_where_there_are_more(store: JobStore) -> None:
    files = [await store.add_file(make.file()) for _ in range(5)]
    assert list(await store.files(PageQuery(tenant="acme", limit=2))) == files[:1:-1]
    rest = PageQuery(tenant="acme", limit=2, after=files[2].id)
    assert list(await store.files(rest)) == [files[1], files[0]]
    forward = PageQuery(tenant="acme", limit=2, after=files[0].id, ascending=True)
    assert list(await store.files(forward)) == files[1:4]
    assert await store.files(PageQuery(tenant="acme", after=files[0].id)) == []


async def test_a_page_behind_a_file_that_is_gone_is_the_first(store: JobStore) -> None:
    files = [await store.add_file(make.file()) for _ in range(3)]
    await store.delete_file("acme", files[1].id)
    page = await store.files(PageQuery(tenant="acme", after=files[1].id))
    assert list(page) == [files[2], files[0]]


async def test_files_are_listed_by_their_purpose(store: JobStore) -> None:
    files = [await store.add_file(make.file(purpose="batch")) for _ in range(2)]
    outputs = [await store.add_file(make.file(purpose="batch_output")) for _ in range(2)]
    found = await store.files(PageQuery(tenant="acme", purpose="batch_output"))
    assert list(found) == outputs[::-1]
    found = await store.files(PageQuery(tenant="acme", purpose="batch", limit=1, after=files[1].id))
    assert list(found) == [files[0]]


async def test_a_deleted_file_is_gone_and_its_object_is_garbage(store: JobStore) -> None:
    file, other = await store.add_file(make.file()), await store.add_file(make.file())
    await store.delete_file("acme", file.id)
    with pytest.raises(NotFound):
        await store.file("acme", file.id)
    with pytest.raises(NotFound):
        await store.delete_file("acme", file.id)
    assert list(await store.files(PageQuery(tenant="acme"))) == [other]
    assert list(await store.take_garbage(10)) == [file.key]


async def test_garbage_is_answered_until_it_is_told_as_removed(store: JobStore) -> None:
    files = [await store.add_file(make.file()) for _ in range(3)]
    for file in files:
        await store.delete_file("acme", file.id)
    keys = {file.key for file in files}
    assert len(await store.take_garbage(2)) == 2
    assert set(await store.take_garbage(10)) == set(await store.take_garbage(10)) == keys
    await store.removed([files[0].key, files[1].key])
    await store.removed([files[0].key, "no such object"])
    assert list(await store.take_garbage(10)) == [files[2].key]
    await store.removed([files[2].key])
    assert not await store.take_garbage(10)


async def test_an_object_of_two_files_stays_while_one_of_them_does(store: JobStore) -> None:
    first = await store.add_file(make.file(key="batch/files/shared"))
    second = await store.add_file(make.file(key="batch/files/shared"))
    await store.delete_file("acme", first.id)
    assert not await store.take_garbage(10)
    await store.delete_file("acme", second.id)
    assert list(await store.take_garbage(10)) == ["batch/files/shared"]


async def test_an_object_that_is_a_file_again_is_no_garbage(store: JobStore) -> None:
    first = await store.add_file(make.file(key="batch/files/shared"))
    await store.delete_file("acme", first.id)
    await store.add_file(make.file(key="batch/files/shared"))
    assert not await store.take_garbage(10)


async def test_a_file_whose_time_is_over_is_not_there(stage: Stage) -> None:
    store = stage.store
    ends = int(await stage.now()) + 1
    file, other = (
        await store.add_file(make.file(expires_at=ends)),
        await store.add_file(make.file()),
    )
    await stage.lapse(ends - await stage.now())
    assert list(await store.take_garbage(10)) == [file.key]
    with pytest.raises(NotFound):
        await store.file("acme", file.id)
    with pytest.raises(NotFound):
        await store.create_job(make.job(file))
    assert list(await store.files(PageQuery(tenant="acme"))) == [other]
    await store.removed([file.key])
    assert not await store.take_garbage(10)
    with pytest.raises(NotFound):
        await store.delete_file("acme", file.id)


async def test_a_file_that_a_job_reads_is_deleted_only_once_the_job_has_ended(
    store: JobStore,
) -> None:
    job = await make.created(store)
    with pytest.raises(Conflict):
        await store.delete_file("acme", job.input_file)
    assert (await store.file("acme", job.input_file)).key == job.input_key
    await store.cancel_job("acme", job.id)
    with pytest.raises(Conflict):
        await store.delete_file("acme", job.input_file)
    await make.ended(store, job)
    await store.delete_file("acme", job.input_file)
    assert job.input_key in await store.take_garbage(10)


async def test_the_object_of_a_file_that_expired_stays_while_a_job_needs_it(stage: Stage) -> None:
    store = stage.store
    ends = int(await stage.now()) + 2
    job = await store.create_job(make.job(await store.add_file(make.file(expires_at=ends))))
    await stage.lapse(ends - await stage.now())
    with pytest.raises(NotFound):
        await store.file("acme", job.input_file)
    assert not await store.take_garbage(10)
    await store.cancel_job("acme", job.id)
    await make.ended(store, job)
    assert job.input_key in await store.take_garbage(10)


async def test_a_file_is_added_once_with_the_mark_of_its_request(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1")
    file = await store.add_file(make.file(), once=_ONCE)
    await keys.release(_KEY, holder="h1")  # which a key that was carried out outlives
    with pytest.raises(IdempotencyAnswerLost):
        await keys.claim(_KEY, request="r", holder="h2")
    assert list(await store.files(PageQuery(tenant="acme"))) == [file]


async def test_whoever_lost_its_key_adds_no_file(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    await keys.claim(_KEY, request="r", holder="h2")
    with pytest.raises(IdempotencyInFlight):
        await store.add_file(make.file(), once=_ONCE)
    assert not await store.files(PageQuery(tenant="acme"))
    assert not await store.take_garbage(10)


async def test_a_file_is_deleted_or_read_by_a_new_job_and_never_both(stage: Stage) -> None:
    other = await stage.another()
    for _ in range(8):
        file = await stage.store.add_file(make.file())
        done = await asyncio.gather(
            stage.store.delete_file("acme", file.id),
            other.create_job(make.job(file)),
            return_exceptions=True,
        )
        kinds = [type(each) for each in done if isinstance(each, Exception)]
        assert kinds in ([Conflict], [NotFound])


# --- what is needed ------------------------------------------------------------------------------


async def test_an_object_is_needed_while_it_is_a_files(store: JobStore) -> None:
    file, other = await store.add_file(make.file()), await store.add_file(make.file())
    asked = {file.key: "", other.key: "batch_unknown", "batch/files/nobodys": ""}
    assert await store.needed(asked) == {file.key, other.key}
    await store.delete_file("acme", file.id)
    assert await store.needed(asked) == {other.key}
    assert await store.needed({}) == frozenset()


async def test_an_object_is_needed_while_a_job_reads_it_though_its_file_has_expired(
    stage: Stage,
) -> None:
    store = stage.store
    ends = int(await stage.now()) + 2
    job = await store.create_job(make.job(await store.add_file(make.file(expires_at=ends))))
    await stage.lapse(ends - await stage.now())
    await store.take_garbage(10)
    assert await store.needed({job.input_key: ""}) == {job.input_key}
    await store.cancel_job("acme", job.id)
    await make.ended(store, job)
    assert await store.needed({job.input_key: ""}) == frozenset()


async def test_what_is_kept_for_a_job_is_needed_until_it_has_ended(store: JobStore) -> None:
    job = await make.created(store)
    folder = f"batch/jobs/{job.id}/"
    asked = {folder: job.id, "batch/files/of-a-job": job.id, "batch/jobs/x/": "batch_x"}
    kept = {folder, "batch/files/of-a-job"}
    assert await store.needed(asked) == kept  # while it is planned
    claim = await make.claimed_job(store)
    await store.add_chunks(claim, make.spans(2), first=0)
    await store.planned(claim, chunks=2, rows=20)
    assert await store.needed(asked) == kept
    await make.run(store, [ChunkRef(job.id, 0), ChunkRef(job.id, 1)])
    assert await store.needed(asked) == kept  # while it is finished
    ended = await make.finished(store, await make.claimed_job(store), key="batch/files/of-a-job")
    assert ended is not None
    assert await store.needed(asked) == {"batch/files/of-a-job"}  # its file by now


async def test_what_was_kept_for_a_job_that_was_refused_is_not_needed(store: JobStore) -> None:
    job = await make.created(store)
    asked = {f"batch/jobs/{job.id}/": job.id}
    assert await store.needed(asked) == set(asked)
    await store.refuse(await make.claimed_job(store), [FileProblem("empty_file", "no rows")])
    assert await store.needed(asked) == frozenset()


async def test_thousands_of_objects_are_looked_up_together(store: JobStore) -> None:
    files = [await store.add_file(make.file()) for _ in range(3)]
    asked = {f"batch/files/nobodys-{n}": f"batch_{n}" for n in range(1203)}
    for place, file in zip((0, 600, 1202), files, strict=True):
        asked[file.key] = ""
        del asked[f"batch/files/nobodys-{place}"]
    assert await store.needed(asked) == {file.key for file in files}


async def test_each_store_has_one_name_in_all_processes(stage: Stage) -> None:
    name = await stage.store.database()
    assert name
    assert await (await stage.another()).database() == name


async def test_a_tenant_has_so_many_files_together(stage: Stage) -> None:
    store, quotas = stage.store, Quotas(files=3)
    first = await store.add_file(make.file(), quotas=quotas)
    await store.add_file(make.file(), quotas=quotas)
    await store.add_file(make.file(purpose="batch_output"))  # which is never refused, and counts
    with pytest.raises(FilesFull, match="has 3 files, and may have 3"):
        await store.add_file(make.file(), quotas=quotas)
    await store.add_file(make.file(tenant="other"), quotas=quotas)
    await store.delete_file("acme", first.id)
    await store.add_file(make.file(), quotas=quotas)


async def test_a_tenants_files_have_so_many_bytes_together(stage: Stage) -> None:
    store, quotas = stage.store, Quotas(stored_bytes=2**41)
    passing = int(await stage.now()) + 2
    await store.add_file(make.file(size_bytes=2**40, expires_at=passing), quotas=quotas)
    await store.add_file(make.file(size_bytes=2**40 - 1), quotas=quotas)
    with pytest.raises(FilesFull, match="delete some"):
        await store.add_file(make.file(size_bytes=2), quotas=quotas)
    assert len(await store.files(PageQuery(tenant="acme"))) == 2
    await store.add_file(make.file(size_bytes=1), quotas=quotas)
    await store.add_file(make.file(size_bytes=2**40, purpose="batch_output"))
    with pytest.raises(FilesFull):
        await store.add_file(make.file(size_bytes=0), quotas=quotas)
    assert (await store.used("acme")).stored_bytes == 3 * 2**40
    await stage.lapse(passing - await stage.now() + 0.1)
    await store.add_file(make.file(size_bytes=0), quotas=quotas)


async def test_what_a_tenant_has_is_told(store: JobStore) -> None:
    assert await store.used("acme") == Used()
    job = await make.planned(store, chunks=1)
    await make.run(store, [ChunkRef(job.id, 0)])
    done = await make.ended(store, job)
    for _ in range(2):
        await make.created(store)
    size_bytes = done.input_bytes
    await store.add_file(make.file(tenant="other"))
    files = await store.files(PageQuery(tenant="acme"))
    used = await store.used("acme")
    assert (used.jobs, used.rows_bytes) == (2, 2 * size_bytes)
    assert used.files == len(files) == 4
    assert used.stored_bytes == sum(file.size_bytes for file in files)


async def test_of_many_files_at_a_time_no_more_are_kept_than_may_be(stage: Stage) -> None:
    stores = [stage.store, await stage.another()]
    kept = await asyncio.gather(
        *(
            stores[n % 2].add_file(
                make.file(size_bytes=100), quotas=Quotas(files=5, stored_bytes=350)
            )
            for n in range(12)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(each, File) for each in kept) == 3
    assert sum(isinstance(each, FilesFull) for each in kept) == 9


async def test_a_file_that_is_refused_leaves_its_key_open(stage: Stage) -> None:
    store, keys = stage.store, stage.keys
    await keys.claim(_KEY, request="r", holder="h1")
    with pytest.raises(FilesFull):
        await store.add_file(make.file(size_bytes=2), quotas=Quotas(stored_bytes=1), once=_ONCE)
    await keys.release(_KEY, holder="h1")
    assert await keys.claim(_KEY, request="r", holder="h2") is None
