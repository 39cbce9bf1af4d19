"""The unmodified `openai` SDK as the client of files and batches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from headrace.batch.settings import BatchSettings
from headrace.domain.calls import Principal
from headrace.domain.jobs import FileProblem
from headrace.domain.scopes import ADMIN, BATCH, INFER, grants
from tests.support.batch_api import ENDPOINT, BatchApi

ROWS = b'{"custom_id": "1"}\n{"custom_id": "2"}\n'


@pytest.fixture
def api() -> BatchApi:
    return BatchApi(BatchSettings(max_file_bytes=100_000))


@pytest.fixture
async def client(api: BatchApi) -> AsyncIterator[AsyncOpenAI]:
    async with _client(api, "ann") as found:
        yield found


def _client(api: BatchApi, token: str) -> AsyncOpenAI:
    transport = httpx2.ASGITransport(api.asgi)
    return AsyncOpenAI(
        api_key=token,
        base_url="http://headrace/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )


async def _upload(client: AsyncOpenAI, data: bytes = ROWS) -> str:
    return (await client.files.create(file=("rows.jsonl", data), purpose="batch")).id


async def _create(client: AsyncOpenAI, file: str, **more: Any) -> Any:
    given: dict[str, Any] = {
        "input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h", **more,
    }  # fmt: skip
    return await client.batches.create(**given)


async def test_a_file_is_uploaded_listed_read_and_deleted(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    made = await client.files.create(file=("rows.jsonl", ROWS), purpose="batch")
    assert (made.object, made.status, made.filename) == ("file", "processed", "rows.jsonl")
    assert (made.bytes, made.purpose, made.created_at) == (len(ROWS), "batch", int(api.time))
    assert await client.files.retrieve(made.id) == made
    assert [file async for file in client.files.list()] == [made]
    assert (await client.files.content(made.id)).read() == ROWS
    gone = await client.files.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)


async def test_a_files_expiry_is_kept(api: BatchApi, client: AsyncOpenAI) -> None:
    made = await client.files.create(
        file=("rows.jsonl", ROWS),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert made.expires_at == int(api.time) + 3600
    with pytest.raises(openai.BadRequestError, match=r"expires_after: expected 3600 to 2592000"):
        await client.files.create(
            file=("rows.jsonl", ROWS),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3599},
        )


async def test_another_purpose_is_refused_with_the_parameters_name(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert (refused.value.param, refused.value.code) == ("purpose", "invalid_request")
    assert api.objects.objects == {}


async def test_a_file_over_the_limit_is_refused_and_nothing_of_it_stays(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await _upload(client, b"x" * 100_001)
    assert (refused.value.status_code, refused.value.param) == (413, "file")
    assert api.objects.objects == {}


async def test_pages_of_files_and_batches_are_walked_to_their_end(client: AsyncOpenAI) -> None:
    files = [await _upload(client) for _ in range(5)]
    batches = [(await _create(client, file)).id for file in files]
    assert [file.id async for file in client.files.list(limit=2)] == files[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == files
    assert [batch.id async for batch in client.batches.list(limit=2)] == batches[::-1]
    assert [file async for file in client.files.list(purpose="vision")] == []
    with pytest.raises(openai.BadRequestError, match="purpose: expected batch or batch_output"):
        await client.files.list(purpose="foo")
    unknown = f"batch_{'0' * 26}"
    with pytest.raises(openai.BadRequestError, match=f"after: there is no batch '{unknown}'"):
        await client.batches.list(after=unknown)


async def test_a_batch_goes_from_validating_to_completed(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    file = await _upload(client)
    made = await _create(
        client, file,
        metadata={"team": "search"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        extra_body={"priority": 5, "max_attempts": 2},
    )  # fmt: skip
    assert (made.object, made.status, made.endpoint) == ("batch", "validating", ENDPOINT)
    assert (made.input_file_id, made.completion_window) == (file, "24h")
    assert (made.metadata, made.model, made.errors) == ({"team": "search"}, "m", None)
    assert made.expires_at == int(api.time) + 86_400
    job = await api.store.job("default", made.id)
    assert (job.priority, job.max_attempts, job.principal) == (5, 2, "ann")
    await api.start(job)
    started = await client.batches.retrieve(made.id)
    assert started.status == "in_progress"
    assert started.request_counts is not None
    assert started.request_counts.total == 2
    await api.end(job)
    ended = await client.batches.retrieve(made.id)
    assert (ended.status, ended.completed_at) == ("completed", int(api.time))
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.request_counts.failed) == (1, 1)
    assert ended.output_file_id is not None
    assert ended.error_file_id is not None
    assert (await client.files.content(ended.output_file_id)).read() == b"{}\n"
    assert (await client.files.retrieve(ended.error_file_id)).purpose == "batch_output"


async def test_what_is_wrong_with_a_file_is_told_by_its_lines(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    made = await _create(client, await _upload(client))
    job = await api.store.job("default", made.id)
    await api.refuse(job, FileProblem("invalid_json_line", "no JSON", 3, "body"))
    failed = await client.batches.retrieve(made.id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    [problem] = failed.errors.data
    assert (problem.code, problem.message, problem.line) == ("invalid_json_line", "no JSON", 3)


async def test_a_batch_is_cancelled_once_however_often_it_is_asked(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    made = await _create(client, await _upload(client))
    for _ in range(2):
        assert (await client.batches.cancel(made.id)).status == "cancelling"
    other = await _create(client, await _upload(client))
    claim = await api.store.claim_job("w", 60.0)  # that of the batch that is cancelled
    assert claim is not None
    assert claim.job.id == made.id
    job = await api.store.job("default", other.id)
    await api.start(job)
    await api.end(job)
    with pytest.raises(openai.ConflictError, match="is completed"):
        await client.batches.cancel(other.id)


async def test_a_file_that_a_batch_reads_is_not_deleted(client: AsyncOpenAI) -> None:
    file = await _upload(client)
    await _create(client, file)
    with pytest.raises(openai.ConflictError):
        await client.files.delete(file)


async def test_only_the_failed_rows_are_run_again(api: BatchApi, client: AsyncOpenAI) -> None:
    made = await _create(client, await _upload(client), metadata={"a": "b"})
    job = await api.store.job("default", made.id)
    with pytest.raises(openai.ConflictError, match="wait for its end"):
        await client.post(f"/batches/{made.id}/retry", cast_to=object)
    await api.start(job)
    await api.end(job)
    again: Any = await client.post(f"/batches/{made.id}/retry", cast_to=object)
    assert (again["retry_of"], again["metadata"], again["endpoint"]) == (
        made.id, {"a": "b"}, ENDPOINT,
    )  # fmt: skip
    rows = (await client.files.content(again["input_file_id"])).read()
    assert rows == b'{"custom_id": "2"}\n'
    path = f"/batches/{made.id}/retry"
    again = await client.post(path, cast_to=object, body={"codes": ["chunk_dead"]})
    assert again["retry_of"] == made.id
    with pytest.raises(openai.ConflictError, match="failed with batch_expired"):
        await client.post(path, cast_to=object, body={"codes": ["batch_expired"]})


async def test_the_same_idempotency_key_makes_one_batch(client: AsyncOpenAI) -> None:
    file = await _upload(client)
    first, second = [
        await _create(client, file, extra_headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert first == second
    assert len([batch async for batch in client.batches.list()]) == 1
    with pytest.raises(openai.UnprocessableEntityError):
        await _create(client, file, metadata={"x": "y"}, extra_headers={"Idempotency-Key": "k"})


async def test_who_operates_the_platform_sees_and_cancels_batches_of_all_tenants(
    api: BatchApi,
) -> None:
    api.principals["eve"] = Principal("eve", "other", grants([BATCH, INFER]))
    api.principals["op"] = Principal("op", grants=grants([ADMIN]))
    api.principals["boss"] = Principal("boss", "other", grants([ADMIN]))
    ids = {}
    for name in ("ann", "eve"):
        async with _client(api, name) as client:
            ids[name] = (await _create(client, await _upload(client))).id
            mine: Any = await client.get(f"/batches/{ids[name]}", cast_to=object)
            assert "tenant" not in mine
    one = f"/batches/{ids['eve']}"
    async with _client(api, "op") as client:
        page: Any = await client.get("/batches?tenant=*", cast_to=object)
        assert [(each["id"], each["tenant"]) for each in page["data"]] == [
            (ids["eve"], "other"), (ids["ann"], "default"),
        ]  # fmt: skip
        for tenant, found in (("other", [ids["eve"]]), ("*", [ids["eve"], ids["ann"]])):
            listed = client.batches.list(limit=1, extra_query={"tenant": tenant})
            assert [each.id async for each in listed] == found
        with pytest.raises(openai.NotFoundError):
            await client.get(one, cast_to=object)
        seen: Any = await client.get(f"{one}?tenant=other", cast_to=object)
        assert (seen["tenant"], seen["status"]) == ("other", "validating")
        for wrong in ("*", "a/b"):
            with pytest.raises(openai.BadRequestError, match="tenant: expected a tenant's name"):
                await client.post(f"{one}/cancel?tenant={wrong}", cast_to=object)
        ended: Any = await client.post(f"{one}/cancel?tenant=other", cast_to=object)
        assert ended["status"] == "cancelling"
    for name, other in (("ann", "other"), ("boss", "default"), ("ann", "*"), ("boss", "*")):
        async with _client(api, name) as client:
            for asked in (
                client.get(f"/batches?tenant={other}", cast_to=object),
                client.get(f"/batches/{ids['ann']}?tenant={other}", cast_to=object),
                client.post(f"/batches/{ids['ann']}/cancel?tenant={other}", cast_to=object),
            ):
                with pytest.raises(openai.PermissionDeniedError, match="leave out the tenant"):
                    await asked
    async with _client(api, "boss") as client:  # what is one's own may be named
        page = await client.get("/batches?tenant=other", cast_to=object)
        assert [each["id"] for each in page["data"]] == [ids["eve"]]
        with pytest.raises(openai.NotFoundError):
            await client.get(f"/batches/{ids['ann']}?tenant=other", cast_to=object)


async def test_a_refused_batch_leaves_its_idempotency_key_as_new(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    key = {"Idempotency-Key": "k"}
    file = await _upload(client)
    await client.files.delete(file)
    with pytest.raises(openai.NotFoundError):
        await _create(client, file, extra_headers=key)
    file = await _upload(client)  # the corrected request is another one
    first, second = [await _create(client, file, extra_headers=key) for _ in range(2)]
    assert first == second
    path = f"/batches/{first.id}/retry"
    again: Any = {"headers": {"Idempotency-Key": "again"}}
    with pytest.raises(openai.ConflictError, match="wait for its end"):
        await client.post(path, cast_to=object, options=again)
    job = await api.store.job("default", first.id)
    await api.start(job)
    await api.end(job)
    retried: Any = await client.post(path, cast_to=object, options=again)
    assert retried["retry_of"] == first.id
    assert await client.post(path, cast_to=object, options=again) == retried
    assert len([batch async for batch in client.batches.list()]) == 2


async def test_another_tenants_files_and_batches_are_not_there(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    api.principals["eve"] = Principal("eve", "other", grants([BATCH, INFER]))
    file = await _upload(client)
    batch = (await _create(client, file)).id
    async with _client(api, "eve") as eve:
        for ask in (
            eve.files.retrieve(file), eve.files.content(file), eve.files.delete(file),
            eve.batches.retrieve(batch), eve.batches.cancel(batch), _create(eve, file),
            eve.post(f"/batches/{batch}/retry", cast_to=object),
            eve.get(f"/batches/{batch}/events", cast_to=object),
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                await ask
        assert [each async for each in eve.files.list()] == []
        assert [each async for each in eve.batches.list()] == []


@pytest.mark.parametrize("scopes", [[INFER], [BATCH], [BATCH, "infer:other"]])
async def test_a_batch_needs_the_scope_and_the_model(
    api: BatchApi, client: AsyncOpenAI, scopes: list[str]
) -> None:
    file = await _upload(client)
    api.principals["bob"] = Principal("bob", grants=grants(scopes))
    async with _client(api, "bob") as bob:
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope"):
            await _create(bob, file)


async def test_what_nothing_serves_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await _create(client, await _upload(client), endpoint="/v1/images/generations")
    assert refused.value.param == "endpoint"


async def test_events_of_an_ended_batch_are_its_last_state_and_done(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    made = await _create(client, await _upload(client))
    job = await api.store.job("default", made.id)
    await api.start(job)
    ended = await api.end(job)
    answer = await client.get(f"/batches/{made.id}/events", cast_to=httpx2.Response)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")[:-1]
    assert [event.splitlines()[:2] for event in events] == [
        [f"id: {ended.revision}", "event: progress"], [f"id: {ended.revision}", "event: done"],
    ]  # fmt: skip
    shown = json.loads(events[1].splitlines()[2].removeprefix("data: "))
    assert shown["status"] == "completed"
