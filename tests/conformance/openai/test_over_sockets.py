"""The SDK over the platform's own HTTP server: what only a connection can show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from headrace.batch.settings import BatchSettings
from headrace.domain.batch_requests import NewJob
from headrace.domain.calls import Call
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.server import HttpServer
from tests.support.batch_api import ANN, ENDPOINT, BatchApi
from tests.support.batch_routes import BatchPort
from tests.support.waiting import until

LARGE = b"x" * 99 + b"\n"


@pytest.fixture
def api() -> BatchApi:
    settings = BatchSettings(max_file_bytes=10_000_000, follow_poll_s=0.01)
    return BatchApi(settings, sleep=asyncio.sleep)


@pytest.fixture
async def client(api: BatchApi) -> AsyncIterator[AsyncOpenAI]:
    async with asyncio.TaskGroup() as tasks:
        server = await HttpServer.listen(
            BatchPort(api.asgi),
            address=("127.0.0.1", 0),
            limits=HttpLimits(max_body_bytes=1_000_000),
            tasks=tasks,
        )
        host, port = server.address
        url = f"http://{host}:{port}/v1"
        async with AsyncOpenAI(api_key="ann", base_url=url, max_retries=0) as found:
            yield found
        await server.drain(5.0)


async def test_an_upload_over_the_limit_of_bodies_comes_in_pieces(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    data = LARGE * 50_000
    made = await client.files.create(file=("rows.jsonl", data), purpose="batch")
    assert (made.bytes, max(api.objects.sizes) < 1_000_000) == (len(data), True)
    assert (await client.files.content(made.id)).read() == data


async def test_the_sdk_reads_why_a_large_upload_is_refused_under_way(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await client.files.create(file=("rows.jsonl", LARGE * 50_000), purpose="vision")
    with pytest.raises(openai.APIStatusError) as refused:
        await client.files.create(file=("rows.jsonl", LARGE * 100_001), purpose="batch")
    assert refused.value.status_code == 413
    assert api.objects.objects == {}


async def test_a_stream_of_events_is_read_as_the_batch_goes_on(
    api: BatchApi, client: AsyncOpenAI
) -> None:
    file = await api.upload()
    wanted = NewJob(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    job = await api.jobs.create(Call("r", ANN), wanted)
    seen: list[str] = []

    async def read() -> None:
        http = client._client  # noqa: SLF001 - the SDK has no verb for a stream of ours
        headers = {"authorization": "Bearer ann"}
        async with http.stream("GET", f"batches/{job.id}/events", headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))  # noqa: PERF401 - as they come

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        await until(lambda: len(seen) == 1)
        await api.start(job)
        await until(lambda: len(seen) == 2)
        await api.end(job)
    assert seen[-1] == "done"
    assert set(seen[:-1]) == {"progress"}
