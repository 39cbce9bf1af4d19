from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from headrace.batch import endpoints
from headrace.batch.jobs import FailedRows, Jobs
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import SpareHands
from headrace.batch.storage import Bounded
from headrace.domain.batch_requests import Again, NewJob
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import (
    Conflict,
    Forbidden,
    HeadraceError,
    NotFound,
    RequestTimeout,
    StoreUnavailable,
    TenantBusy,
    UnknownModel,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.domain.jobs import FINAL, FileProblem, Job, Target
from headrace.domain.parameters import FilesFull, InvalidParam
from headrace.domain.scopes import BATCH, INFER, grants
from headrace.ports.job_store import Hold
from tests.support import job_makers
from tests.support.batch_api import ANN, ENDPOINT, BatchApi

CALL = Call("r", ANN)


@pytest.fixture
def api() -> BatchApi:
    return BatchApi(BatchSettings(max_jobs_per_tenant=2))


async def _wanted(api: BatchApi, **more: Any) -> NewJob:
    given: dict[str, Any] = {"endpoint": ENDPOINT, "completion_window": "24h", **more}
    if "input_file_id" not in given:
        given["input_file_id"] = (await api.upload()).id
    return NewJob(**given)


async def _create(api: BatchApi, **more: Any) -> Job:
    return await api.jobs.create(CALL, await _wanted(api, **more))


async def _ended(api: BatchApi, **rows: int) -> Job:
    job = await _create(api)
    await api.start(job)
    return await api.end(job, **rows)


@pytest.mark.parametrize(
    ("endpoint", "model", "version"),
    [
        ("/v2/models/m/infer", "m", ""),
        ("/v2/models/m/versions/3/infer", "m", "3"),
        ("/v2/models/%6D/versions/v%2E1/infer", "m", "v.1"),
    ],
)
async def test_a_job_is_for_the_model_of_its_endpoint(
    api: BatchApi, endpoint: str, model: str, version: str
) -> None:
    target = (await _create(api, endpoint=endpoint)).target
    assert (target.url, target.model, target.version) == (endpoint, model, version)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "/v2/models/m",
        "/v2/models//infer",
        "/v2/models/m/infer/",
        "/v2/models/m/infer?x=1",
        "/v2/models/a%2Fb/infer",
        "/v2/models/m/versions/%00/infer",
        "/v2/models/.m/infer",
        "/v1/files",
        "http://api/v2/models/m/infer",
        f"/v2/models/{'m' * 2000}/infer",
    ],
)
async def test_an_endpoint_that_names_no_model_is_refused(api: BatchApi, endpoint: str) -> None:
    with pytest.raises(InvalidParam) as refused:
        await _create(api, endpoint=endpoint)
    assert refused.value.details == {"param": "endpoint"}


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/chat/completions", "/v1/completions"])
async def test_where_rows_name_their_models_the_caller_must_be_free_to_run_any(
    api: BatchApi, endpoint: str
) -> None:
    job = await _create(api, endpoint=endpoint)
    assert (job.target.url, job.target.model) == (endpoint, "")
    bob = Call("r", Principal("bob", grants=grants([BATCH, "infer:m*"])))
    with pytest.raises(Forbidden, match="may not run all of them"):
        await api.jobs.create(bob, await _wanted(api, endpoint=endpoint))


@pytest.mark.parametrize(
    ("window", "window_s"), [("1h", 3600), ("60m", 3600), ("24h", 86_400), ("14d", 1_209_600)]
)
async def test_a_job_has_the_window_that_it_asks_for(
    api: BatchApi, window: str, window_s: int
) -> None:
    job = await _create(api, completion_window=window)
    assert (job.window_s, job.completion_window) == (window_s, window)
    assert job.expires_at == int(api.time) + window_s


@pytest.mark.parametrize("window", ["", "24", "h", "0h", "024h", "24 h", "1.5h", "3599s", "337h"])
async def test_another_window_is_refused(api: BatchApi, window: str) -> None:
    with pytest.raises(InvalidParam, match="completion_window"):
        await _create(api, completion_window=window)


async def test_a_job_that_does_not_say_how_often_has_the_attempts_of_the_settings(
    api: BatchApi,
) -> None:
    assert (await _create(api)).max_attempts == 3
    assert (await _create(api, max_attempts=1)).max_attempts == 1


async def test_the_caller_needs_the_scope_and_the_model(api: BatchApi) -> None:
    wanted = await _wanted(api)
    for scopes in ([BATCH], [INFER], [BATCH, "infer:x*"]):
        call = Call("r", Principal("bob", grants=grants(scopes)))
        with pytest.raises(Forbidden, match="lacks the scope"):
            await api.jobs.create(call, wanted)
    call = Call("r", Principal("bob", grants=grants([BATCH, "infer:m"])))
    assert (await api.jobs.create(call, wanted)).principal == "bob"


async def test_only_a_file_of_the_tenant_that_is_for_batches_is_read(api: BatchApi) -> None:
    eve = Call("r", Principal("eve", "other", grants([BATCH, INFER])))
    with pytest.raises(NotFound):
        await api.jobs.create(eve, await _wanted(api))
    output = (await _ended(api)).output_file
    with pytest.raises(InvalidParam, match="batch_output"):
        await _create(api, input_file_id=output)
    with pytest.raises(NotFound, match="input_file_id"):
        await _create(api, input_file_id="\0")


async def test_a_tenant_has_so_many_jobs_at_a_time(api: BatchApi) -> None:
    for _ in range(2):
        await _create(api)
    with pytest.raises(TenantBusy):
        await _create(api)


async def test_who_works_on_jobs_is_told_of_a_new_one_and_of_one_that_is_cancelled(
    api: BatchApi,
) -> None:
    job = await _create(api)
    assert api.told == 1
    await api.jobs.cancel(CALL, job.id)
    assert api.told == 2


async def test_who_waits_for_new_jobs_is_given_small_ones_and_large_ones_wait_their_turn() -> None:
    spare = SpareHands(Hold("here", 60.0))
    api = BatchApi(BatchSettings(small_file_bytes=20), offer=spare.offer)
    waiting = asyncio.create_task(spare.next())
    await asyncio.sleep(0)
    large = await _create(api, input_file_id=(await api.upload(b"x" * 21)).id)
    assert api.told == 1
    small = await _create(api, input_file_id=(await api.upload(b"x" * 20)).id)
    assert (await waiting).job.id == small.id
    assert api.told == 1
    assert (await job_makers.claimed_job(api.store)).job.id == large.id


async def test_a_change_is_marked_with_its_idempotency_key(api: BatchApi) -> None:
    key = IdempotencyKey("default", "ann", "k")
    assert await api.keys.claim(key, request="r", holder="h") is None
    call = msgspec.structs.replace(CALL, once=Once(key, "h"))
    await api.jobs.create(call, await _wanted(api))
    assert api.keys.rows[key].done_until is not None


async def test_a_job_that_ended_is_not_cancelled_and_one_that_was_stays_so(api: BatchApi) -> None:
    done = await _ended(api)
    with pytest.raises(Conflict, match="is completed"):
        await api.jobs.cancel(CALL, done.id)
    job = await _create(api)
    first = await api.jobs.cancel(CALL, job.id)
    claim = await api.store.claim_job("w", 60.0)
    assert claim is not None
    await api.store.planned(claim, chunks=0, rows=0)
    assert await api.jobs.cancel(CALL, job.id) == await api.jobs.get(CALL, job.id)
    claim = await api.store.claim_job("w", 60.0)
    assert claim is not None
    await api.store.finish(claim, output=None, errors=None, rows_failed=0)
    assert (first.state, (await api.jobs.cancel(CALL, job.id)).state) == ("cancelling", "cancelled")


async def test_a_retry_is_the_job_again_with_its_failed_rows(api: BatchApi) -> None:
    done = await _ended(api, completed=1, failed=1)
    again = await api.jobs.retry(CALL, done.id, Again())
    assert (again.retry_of, again.target, again.state) == (done.id, done.target, "validating")
    assert (again.window_s, again.max_attempts) == (done.window_s, done.max_attempts)
    file = await api.files.get(CALL, again.input_file)
    assert api.objects.objects[file.key] == b'{"custom_id": "2"}\n'
    assert (file.size_bytes, again.input_bytes) == (19, 19)


async def test_a_retry_may_go_otherwise(api: BatchApi) -> None:
    done = await _ended(api)
    otherwise = Again(completion_window="2h", metadata={"a": "b"}, priority=-3, max_attempts=7)
    again = await api.jobs.retry(CALL, done.id, otherwise)
    assert (again.window_s, again.priority, again.max_attempts) == (7200, -3, 7)
    assert again.metadata == {"a": "b"}
    with pytest.raises(InvalidParam):
        await api.jobs.retry(CALL, done.id, Again(priority=11))


async def test_only_what_ended_with_failed_rows_is_run_again(api: BatchApi) -> None:
    job = await _create(api)
    with pytest.raises(Conflict, match="wait for its end"):
        await api.jobs.retry(CALL, job.id, Again())
    await api.refuse(job, FileProblem("empty_file", "it is empty"))
    with pytest.raises(Conflict, match="refused as a whole"):
        await api.jobs.retry(CALL, job.id, Again())
    done = await _ended(api, completed=2, failed=0)
    with pytest.raises(Conflict, match="none failed"):
        await api.jobs.retry(CALL, done.id, Again())


async def test_a_retry_may_be_of_the_rows_that_failed_with_one_code(api: BatchApi) -> None:
    done = await _ended(api)
    again = await api.jobs.retry(CALL, done.id, Again(codes=frozenset({"chunk_dead"})))
    assert again.retry_of == done.id
    before = dict(api.objects.objects)
    with pytest.raises(Conflict, match="failed with batch_expired"):
        await api.jobs.retry(CALL, done.id, Again(codes=frozenset({"batch_expired"})))
    assert api.objects.objects == before
    for codes in ([], ["Nothing of ours"], [f"code_{i}" for i in range(33)]):
        with pytest.raises(InvalidParam, match="codes"):
            await api.jobs.retry(CALL, done.id, Again(codes=frozenset(codes)))


async def test_a_retry_needs_the_model_too(api: BatchApi) -> None:
    done = await _ended(api)
    bob = Call("r", Principal("bob", grants=grants([BATCH])))
    with pytest.raises(Forbidden):
        await api.jobs.retry(bob, done.id, Again())


async def test_a_retry_whose_rows_take_too_long_leaves_no_file(api: BatchApi) -> None:
    done = await _ended(api)
    before = dict(api.objects.objects)

    async def slow(job: Job, key: str, *, codes: frozenset[str] | None, bounded: Bounded) -> int:
        del bounded
        assert (job, codes) == (done, None)
        api.objects.objects[key] = b"rows"
        api.time += api.settings.orphan_age_s
        return 4

    jobs = _knowing(api, None, failed_rows=slow)
    with pytest.raises(RequestTimeout):
        await jobs.retry(CALL, done.id, Again())
    assert api.objects.objects == before


async def test_a_job_for_a_model_that_nobody_serves_is_refused(api: BatchApi) -> None:
    jobs = _knowing(api, "other")
    with pytest.raises(UnknownModel, match="no model 'm'"):
        await jobs.create(CALL, await _wanted(api))
    assert (await api.jobs.find(CALL)).items == []
    job = await _knowing(api, "m").create(CALL, await _wanted(api))
    assert job.target.model == "m"


async def test_a_job_for_a_model_that_has_no_answer_to_a_row_is_refused(api: BatchApi) -> None:
    jobs = _knowing(api, "m", unfit=endpoints.streamed("m"))
    with pytest.raises(InvalidParam, match="generate_stream"):
        await jobs.create(CALL, await _wanted(api))
    assert (await api.jobs.find(CALL)).items == []


async def test_only_the_callers_tenant_is_asked_for_the_model(api: BatchApi) -> None:
    asked: list[tuple[str, Target]] = []
    jobs = _knowing(api, "m", asked=asked)
    await jobs.create(CALL, await _wanted(api, endpoint="/v2/models/m/versions/3/infer"))
    [(tenant, target)] = asked
    assert (tenant, target.model, target.version) == (ANN.tenant, "m", "3")


async def test_where_rows_name_their_models_none_is_asked_about(api: BatchApi) -> None:
    asked: list[tuple[str, Target]] = []
    jobs = _knowing(api, None, asked=asked)
    await jobs.create(CALL, await _wanted(api, endpoint="/v1/embeddings"))
    assert asked == []


async def test_a_retry_for_a_model_that_is_gone_is_refused_and_leaves_no_file(
    api: BatchApi,
) -> None:
    done = await _ended(api)
    before = dict(api.objects.objects)
    with pytest.raises(UnknownModel):
        await _knowing(api, "other").retry(CALL, done.id, Again())
    assert api.objects.objects == before
    assert [job.id for job in (await api.jobs.find(CALL)).items] == [done.id]


def _knowing(
    api: BatchApi,
    model: str | None,
    *,
    asked: list[tuple[str, Target]] | None = None,
    failed_rows: FailedRows | None = None,
    unfit: HeadraceError | None = None,
) -> Jobs:
    """The jobs of a process that knows one model, which may be unfit; None: any."""

    async def unknown(tenant: str, target: Target) -> HeadraceError | None:
        if asked is not None:
            asked.append((tenant, target))
        if model in {None, target.model}:
            return unfit
        return UnknownModel(f"there is no model '{target.model}'")

    async def no_rows(job: Job, key: str, *, codes: frozenset[str] | None, bounded: Bounded) -> int:
        raise AssertionError((job, key, codes, bounded))

    return Jobs(
        store=api.store,
        objects=api.objects,
        failed_rows=failed_rows or no_rows,
        storage=api.storage,
        settings=api.settings,
        clock=lambda: api.time,
        monotonic=lambda: api.monotonic,
        obstacle=unknown,
    )


async def test_a_retry_that_a_quota_refuses_leaves_no_file(api: BatchApi) -> None:
    done = await _ended(api)
    for _ in range(2):
        await _create(api)
    before = (await api.files.find(CALL)).items
    with pytest.raises(TenantBusy):
        await api.jobs.retry(CALL, done.id, Again())
    assert (await api.files.find(CALL)).items == before


async def test_a_retry_that_a_quota_refuses_writes_nothing_first(api: BatchApi) -> None:
    done = await _ended(api)
    for _ in range(2):
        await _create(api)
    with pytest.raises(TenantBusy):  # ahead of the rows, which it is an error to ask for
        await _knowing(api, None).retry(CALL, done.id, Again())


async def test_a_retry_that_there_is_no_room_for_leaves_no_file() -> None:
    api = BatchApi(BatchSettings(max_stored_bytes_per_tenant=10**6))
    done = await _ended(api, completed=1, failed=3)
    left = 10**6 - (await api.store.used(ANN.tenant)).stored_bytes
    filler = job_makers.file(size_bytes=left - 40, tenant=ANN.tenant)  # two rows fit, not three
    await api.store.add_file(filler)
    before = dict(api.objects.objects)
    with pytest.raises(FilesFull, match="delete some"):
        await api.jobs.retry(CALL, done.id, Again())
    assert api.objects.objects == before
    assert [job.id for job in (await api.jobs.find(CALL)).items] == [done.id]
    await api.files.delete(CALL, filler.id)
    assert (await api.jobs.retry(CALL, done.id, Again())).retry_of == done.id


async def test_a_retry_that_may_have_begun_keeps_its_file(api: BatchApi) -> None:
    done = await _ended(api)

    async def lose(name: str) -> None:
        if name == "create_job":
            raise StoreUnavailable("no answer")

    api.store.after_gate = lose  # it is created, and the answer is lost
    with pytest.raises(StoreUnavailable):
        await api.jobs.retry(CALL, done.id, Again())
    [begun] = [job for job in (await api.jobs.find(CALL)).items if job.retry_of]
    assert (await api.files.get(CALL, begun.input_file)).key == begun.input_key


async def test_pages_say_whether_more_follows(api: BatchApi) -> None:
    made = [await _ended(api) for _ in range(3)]
    first = await api.jobs.find(CALL, limit=2)
    assert ([job.id for job in first.items], first.has_more) == ([made[2].id, made[1].id], True)
    last = await api.jobs.find(CALL, limit=2, after=made[1].id)
    assert ([job.id for job in last.items], last.has_more) == ([made[0].id], False)


async def test_a_store_that_is_gone_for_a_while_does_not_end_a_stream(api: BatchApi) -> None:
    job = await _create(api)
    changes = await api.jobs.follow(CALL, job.id)
    assert (await anext(changes)) == job
    looks = 0

    async def gone_twice(name: str) -> None:
        nonlocal looks
        if name == "job":
            looks += 1
            if looks <= 2:
                raise StoreUnavailable("no answer")

    await api.refuse(job, FileProblem("empty_file", "it is empty"))
    api.store.gate = gone_twice
    found = [change async for change in changes]
    assert [change.state for change in found if change] == ["failed"]
    assert looks == 3


async def test_an_ended_job_is_told_even_to_who_saw_it(api: BatchApi) -> None:
    done = await _ended(api)
    assert done.state in FINAL
    changes = await api.jobs.follow(CALL, done.id, seen=done.revision)
    assert [change async for change in changes] == [done]


async def test_another_tenants_job_is_not_there(api: BatchApi) -> None:
    job = await _create(api)
    eve = Call("r", Principal("eve", "other", grants([BATCH, INFER])))
    for ask in (
        api.jobs.get(eve, job.id),
        api.jobs.cancel(eve, job.id),
        api.jobs.retry(eve, job.id, Again()),
        api.jobs.follow(eve, job.id),
    ):
        with pytest.raises(NotFound):
            await ask
    assert (await api.jobs.find(eve)).items == []


@pytest.mark.parametrize("id_", ["", "x", "file-0", "batch_", "batch_\0", "batch_A"])
async def test_what_no_jobs_id_can_be_is_not_asked_of_the_store(api: BatchApi, id_: str) -> None:
    for ask in (api.jobs.get(CALL, id_), api.jobs.cancel(CALL, id_)):
        with pytest.raises(NotFound):
            await ask
    assert api.store.calls == {}
