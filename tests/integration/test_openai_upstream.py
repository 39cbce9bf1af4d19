"""The client of servers of OpenAI's API, against one that fails as it is told to."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    UnknownModel,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.upstream import Site
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.openai.payload import CHAT, EMBEDDINGS, read
from headrace.transport.openai.refusal import Refusal
from headrace.transport.openai.reply import OpenAiReply
from headrace.transport.openai.upstream import OpenAiUpstream
from tests.support.openai_server import Fault, OpenAiServer
from tests.support.waiting import until

_AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    async with OpenAiServer("m", "org/m") as server:
        yield server


@pytest.fixture
async def upstream(server: OpenAiServer) -> AsyncIterator[OpenAiUpstream]:
    made = upstream_of(server)
    yield made
    await made.close()


def upstream_of(server: OpenAiServer, path: str = "", secret: str = "") -> OpenAiUpstream:
    site = Site("127.0.0.1", server.port, ip_address("127.0.0.1"), path)
    return OpenAiUpstream(
        Endpoint(tenant="t", name="e", url=server.url, created_at=_AT, updated_at=_AT),
        site,
        pool=ClientPool(site, limits=ClientLimits(max_connections=2, connect_timeout_s=5)),
        secret=secret,
        clock=time.monotonic,
        wall_clock=time.time,
    )


def request(path: str = EMBEDDINGS, model: str = "m", **more: Any) -> InferRequest:
    body = {"model": model, "input": "x", "messages": [{"content": "a b c"}], **more}
    payload = read(path, json.dumps(body).encode())
    return InferRequest(payload.model, "", payload)


def call(timeout_s: float = math.inf) -> Call:
    return Call("req-1", deadline=asyncio.get_running_loop().time() + timeout_s)


def words(reply: Any) -> Any:
    assert isinstance(reply, OpenAiReply)
    return json.loads(reply.body)


@pytest.mark.parametrize("path", ["", "/v1", "/proxy/v1", "/proxy"])
async def test_a_url_may_have_its_v1_or_not(server: OpenAiServer, path: str) -> None:
    upstream = upstream_of(server, path)
    await upstream.infer(request(), call())
    assert server.seen[0].path == path.removesuffix("/v1") + EMBEDDINGS
    await upstream.close()


async def test_what_the_endpoint_is_told_beside_the_body(server: OpenAiServer) -> None:
    upstream = upstream_of(server, secret="sk-1")
    await upstream.infer(request(), call(5))
    headers = server.seen[0].headers
    assert headers["authorization"] == "Bearer sk-1"
    assert headers["x-request-id"] == "req-1"
    assert headers["x-headrace-hops"] == "1"
    assert 0 < float(headers["request-timeout"]) <= 5
    await upstream.close()


async def test_a_stream_has_a_response_for_each_event(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    asked = request(CHAT, stream=True)
    heard = [words(r.reply) async for r in upstream.stream(asked, call())]
    assert [each["choices"][0]["delta"]["content"] for each in heard] == ["a", "b", "c"]
    assert upstream.connections == 0
    heard = [words(r.reply) async for r in upstream.stream(request(CHAT), call())]
    assert [each["choices"][0]["message"]["content"] for each in heard] == ["a b c"]
    assert not server.left


@pytest.mark.parametrize("fault", ["garbage", "no-answer", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_answer_is_the_endpoints_failure(
    upstream: OpenAiUpstream, server: OpenAiServer, fault: Fault, *, stream: bool
) -> None:
    server.fault = fault
    with pytest.raises(EndpointFailed):
        await _first(upstream, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_the_same_whether_it_streams_or_not(
    upstream: OpenAiUpstream, server: OpenAiServer, *, stream: bool
) -> None:
    body = b'{"error": {"message": "too long"}}'
    server.fault, server.refusal = "status", (422, {}, body)
    with pytest.raises(Refusal) as refused:
        await _first(upstream, stream=stream)
    assert (refused.value.status, refused.value.body) == (422, body)
    server.refusal = (429, {"Retry-After": "2"}, b"")
    with pytest.raises(EndpointBusy) as busy:
        await _first(upstream, stream=stream)
    assert busy.value.retry_after_s == 2
    server.fault = ""
    with pytest.raises(UnknownModel, match="does not exist"):
        await _first(upstream, "other", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_silence_ends_with_the_deadline_and_the_endpoint_sees_it(
    upstream: OpenAiUpstream, server: OpenAiServer, *, stream: bool
) -> None:
    server.fault = "hang"
    with pytest.raises(EndpointTimeout):
        await _first(upstream, stream=stream, timeout_s=0.1)
    await until(lambda: server.left == 1)
    with pytest.raises(EndpointTimeout):
        await _first(upstream, stream=stream, timeout_s=-1)
    assert len(server.seen) == 1


@pytest.mark.parametrize("fault", ["no-done", "break-off", "error-event", "garbage-event"])
async def test_a_stream_that_does_not_end_as_it_should_fails_behind_what_came(
    upstream: OpenAiUpstream, server: OpenAiServer, fault: Fault
) -> None:
    server.fault = fault
    heard: list[InferResponse] = []
    with pytest.raises(EndpointFailed) as failed:
        await _hear(upstream, heard)
    assert heard
    assert "10.0.0.9" not in failed.value.message
    assert upstream.connections == 0


async def test_an_answer_where_a_stream_was_asked_for_is_none(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    server.fault = "plain-json"
    with pytest.raises(EndpointFailed, match="no stream of events"):
        await _first(upstream, stream=True)


async def test_who_stops_reading_a_stream_ends_it_at_the_endpoint(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    server.fault = "hang-after-first"
    async with aclosing(upstream.stream(request(CHAT, stream=True), call(10))) as responses:
        await anext(responses)
        assert upstream.connections == 1
    await until(lambda: server.left == 1)
    assert upstream.connections == 0


async def test_a_stream_that_is_cancelled_before_its_first_event_is_ended_too(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    server.fault = "hang"
    task = asyncio.create_task(_first(upstream, stream=True))
    await until(lambda: len(server.seen) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.left == 1)


async def test_there_are_no_more_streams_than_connections_may_be(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    server.fault = "hang-after-first"
    streams = [upstream.stream(request(CHAT, stream=True), call(10)) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(EndpointBusy):
        await _first(upstream, stream=True)
    for stream in streams:
        await stream.aclose()
    await _first(upstream, stream=True)


async def test_a_server_that_nobody_reaches_was_not_burdened(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    await server.kill()
    for stream in (False, True):
        with pytest.raises(EndpointFailed) as failed:
            await _first(upstream, stream=stream)
        assert not failed.value.sent


async def test_readiness_is_what_the_list_of_models_says(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    async def unready(model: str = "") -> str:
        return await upstream.unready(model, "", call(5).deadline)

    assert await unready() == ""
    assert await unready("org/m") == ""
    assert await unready("other") == "it does not list the model 'other'"
    server.lists = False  # some servers of embeddings have no list
    assert await unready("other") == ""
    server.key = "secret"
    assert "status 401" in await unready()
    await server.kill()
    assert "Connect call failed" in await unready()


async def test_the_index_is_the_list_and_more_is_not_offered(
    upstream: OpenAiUpstream, server: OpenAiServer
) -> None:
    deadline = call(5).deadline
    assert [each.name for each in await upstream.models.index(deadline)] == ["m", "org/m"]
    with pytest.raises(Unsupported):
        await upstream.models.config("m", "", deadline)
    server.lists = False
    with pytest.raises(Unsupported):
        await upstream.models.index(deadline)


async def test_tensors_and_versions_are_not_for_such_endpoints(upstream: OpenAiUpstream) -> None:
    with pytest.raises(Unsupported, match="ask it at /v1/embeddings"):
        await upstream.infer(InferRequest("m", "", None, InferContent([])), call())
    asked = request()
    asked.version = "2"
    with pytest.raises(UnknownModel, match="knows no versions"):
        await upstream.infer(asked, call())


async def _hear(upstream: OpenAiUpstream, heard: list[InferResponse]) -> None:
    async for response in upstream.stream(request(CHAT, stream=True), call(10)):
        heard.append(response)  # noqa: PERF401 - what comes before a failure counts


async def _first(
    upstream: OpenAiUpstream, model: str = "m", *, stream: bool, timeout_s: float = math.inf
) -> None:
    """The first response, however it is asked for."""
    asked = request(CHAT, model, stream=stream)
    if not stream:
        await upstream.infer(asked, call(timeout_s))
        return
    async with aclosing(upstream.stream(asked, call(timeout_s))) as responses:
        await anext(responses)
