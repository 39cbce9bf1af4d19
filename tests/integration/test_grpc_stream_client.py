"""The gRPC client's streams against a server that behaves, that misbehaves, and that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    UnknownModel,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent, Tensor
from headrace.ports.upstream import Site
from headrace.transport.http.drive import Drive
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.settings import GrpcClientSettings
from headrace.transport.oip_grpc.upstream import GrpcUpstream
from tests.support.waiting import settled, until

AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(
    tenant="default", name="triton", url="grpc://it", created_at=AT, updated_at=AT
)  # fmt: skip

#: What a server does with a request: it is given the call, and how a message is sent.
Serve = Callable[[Any, Callable[[bytes], Awaitable[None]]], Awaitable[None]]


def message(index: int, *, final: bool | None = False, size: int = 1, error: str = "") -> bytes:
    answer = schema.ModelStreamInferResponse(error_message=error)
    response = answer.infer_response
    response.model_version = "7"
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    response.outputs.add(name="y", datatype="UINT8", shape=[size])
    response.raw_output_contents.append(bytes([index % 256]) * size)
    encoded: bytes = answer.SerializeToString()
    return encoded


class Backend(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that streams, by grpc.aio; it notes what came and how it ended."""

    def __init__(self) -> None:
        self.serve: Serve = counting(3)
        self.requests: list[list[bytes]] = []  # the messages of each call
        self.metadata: list[dict[str, Any]] = []
        self.remaining_s: list[float | None] = []
        self.sent = 0  # messages that flow control took
        self.cancelled = 0
        self.streams = True
        self.infers = 0
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method.endswith("/ModelInfer"):
            return grpc.unary_unary_rpc_method_handler(self._infer)
        if self.streams and handler_call_details.method.endswith("/ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return None

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_s.append(context.time_remaining())
        try:
            self.requests.append([each async for each in requests])  # until the client's end

            async def send(answer: bytes) -> None:
                await context.write(answer)
                self.sent += 1

            await self.serve(context, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _infer(self, _: bytes, __: Any) -> bytes:
        self.infers += 1
        answer = schema.ModelStreamInferResponse.FromString(message(5, final=None))
        encoded: bytes = answer.infer_response.SerializeToString()
        return encoded


def counting(count: int, *, size: int = 1, final: bool = False) -> Serve:
    """So many responses, none of which is the last by its own word, or the last one is."""

    async def serve(_: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
        for index in range(count):
            await send(message(index, size=size, final=final and index == count - 1))

    return serve


def saying(*messages: bytes, status: grpc.StatusCode | None = None, details: str = "") -> Serve:
    """These messages, and then a status, OK where there is none."""

    async def serve(context: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
        for each in messages:
            await send(each)
        if status is not None:
            await context.abort(status, details)

    return serve


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = Backend()
    await backend.start()
    yield backend
    await backend.stop()


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[GrpcUpstream]:
    client = upstream(backend.port)
    yield client
    await client.close()


def upstream(port: int) -> GrpcUpstream:
    site = Site("model.test", port, ip_address("127.0.0.1"))
    return GrpcUpstream(ENDPOINT, site, settings=GrpcClientSettings(), clock=time.monotonic)


def request() -> InferRequest:
    x = Tensor("x", "UINT8", np.arange(3, dtype=np.uint8))
    return InferRequest("m", "3", decoded=InferContent([x], "42"))


def call(timeout_s: float = 10.0) -> Call:
    return Call("mine-1", deadline=time.monotonic() + timeout_s)


def value(response: InferResponse) -> int:
    response.unpack()
    return int(response.outputs[0].array.flat[0])


async def answers(client: GrpcUpstream, call_: Call | None = None) -> list[InferResponse]:
    async with aclosing(client.stream(request(), call_ or call())) as stream:
        return [response async for response in stream]


async def broken(client: GrpcUpstream, call_: Call | None = None) -> tuple[int, HeadraceError]:
    """How many responses came before the error, and the error."""
    seen: list[InferResponse] = []

    async def read() -> None:
        async with aclosing(client.stream(request(), call_ or call())) as stream:
            async for response in stream:
                seen.append(response)  # noqa: PERF401 - what came before an error counts

    with pytest.raises(HeadraceError) as caught:
        await read()
    return len(seen), caught.value


# ---- what goes out, and what comes back


async def test_each_response_comes_as_it_was_sent_until_the_stream_ends(
    backend: Backend, client: GrpcUpstream
) -> None:
    responses = await answers(client)
    assert [value(each) for each in responses] == [0, 1, 2]
    assert {(each.model, each.version, each.final) for each in responses} == {("m", "7", False)}
    ((sent,),) = backend.requests
    asked = schema.ModelInferRequest.FromString(sent)
    assert (asked.model_name, asked.model_version, asked.id) == ("m", "3", "42")
    assert 9_000_000 < asked.parameters["timeout"].int64_param <= 10_000_000
    (metadata,) = backend.metadata
    assert metadata["x-request-id"] == "mine-1"
    assert metadata["x-headrace-hops"] == "1"
    assert metadata["triton_grpc_error"] == "true"
    (left_s,) = backend.remaining_s
    assert left_s is not None
    assert 8.0 < left_s < 10.5


async def test_the_last_response_is_final_where_the_endpoint_tells(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = counting(2, final=True)
    assert [each.final for each in await answers(client)] == [False, True]


async def test_responses_of_a_server_that_does_not_tell_are_not_final(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = saying(message(1, final=None))
    assert [each.final for each in await answers(client)] == [False]


async def test_an_end_without_any_response_is_the_endpoints_failure(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = saying()
    count, error = await broken(client)
    assert (count, type(error)) == (0, EndpointFailed)


async def test_the_endpoint_is_asked_to_tell_the_end_even_where_nothing_stands_before_it(
    backend: Backend, client: GrpcUpstream
) -> None:
    answer = schema.ModelStreamInferResponse()
    answer.infer_response.parameters["triton_final_response"].bool_param = True
    backend.serve = saying(answer.SerializeToString())
    (response,) = await answers(client)
    response.unpack()
    assert (response.final, response.outputs) == (True, [])
    ((sent,),) = backend.requests
    asked = schema.ModelInferRequest.FromString(sent)
    assert asked.parameters["triton_enable_empty_final_response"].bool_param


async def test_a_final_response_is_the_end_though_the_endpoint_keeps_the_call_open(
    backend: Backend, client: GrpcUpstream
) -> None:
    async def serve(_: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
        await send(message(1, final=True))
        await asyncio.get_running_loop().create_future()

    backend.serve = serve
    async with asyncio.timeout(5.0):
        assert [each.final for each in await answers(client, call(60.0))] == [True]
    await until(lambda: backend.cancelled == 1, timeout_s=5.0)


async def test_nothing_is_lost_to_a_reader_who_is_slower_than_the_end(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = counting(200)
    seen: list[int] = []
    async with aclosing(client.stream(request(), call())) as stream:
        async for response in stream:
            if not seen:
                await until(lambda: backend.sent == 200)
            seen.append(value(response))
    assert seen == list(range(200))


async def test_a_reader_who_waits_holds_the_server_up(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = counting(1000, size=100_000)
    async with aclosing(client.stream(request(), call())) as stream:
        assert value(await anext(stream)) == 0
        assert await settled(lambda: backend.sent) < 100
        assert value(await anext(stream)) == 1


# ---- ends that are none


async def test_a_stream_that_is_broken_off_never_ends_silently(
    backend: Backend, client: GrpcUpstream
) -> None:
    async def serve(_: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
        await send(message(0))
        asyncio.get_running_loop().call_later(0.1, asyncio.ensure_future, backend.stop())
        await asyncio.get_running_loop().create_future()

    backend.serve = serve
    count, error = await broken(client)
    assert (count, type(error)) == (1, EndpointFailed)


@pytest.mark.parametrize(
    "case",
    [
        (grpc.StatusCode.NOT_FOUND, "no model m", UnknownModel),
        (grpc.StatusCode.INVALID_ARGUMENT, "no x", InvalidRequest),
        (grpc.StatusCode.UNIMPLEMENTED, "no such thing here", Unsupported),
        (grpc.StatusCode.INTERNAL, "failed on purpose", EndpointFailed),
        (grpc.StatusCode.CANCELLED, "failed on purpose", EndpointFailed),
        (grpc.StatusCode.UNAVAILABLE, "failed on purpose", EndpointFailed),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
async def test_a_status_breaks_the_stream_off_with_the_error_that_it_means(
    backend: Backend,
    client: GrpcUpstream,
    case: tuple[grpc.StatusCode, str, type[HeadraceError]],
    before: int,
) -> None:
    status, details, kind = case
    backend.serve = saying(*map(message, range(before)), status=status, details=details)
    count, error = await broken(client)
    assert (count, type(error)) == (before, kind)


async def test_an_error_in_a_message_breaks_the_stream_off_as_well(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = saying(message(0), message(1, error="failed on purpose"), message(2))
    count, error = await broken(client)
    assert (count, type(error)) == (1, EndpointFailed)


def of_another_size() -> bytes:
    answer = schema.ModelStreamInferResponse.FromString(message(2, size=4))
    answer.infer_response.outputs[0].shape[0] = 3
    encoded: bytes = answer.SerializeToString()
    return encoded


@pytest.mark.parametrize("last", [b"<html>", b"", b"\x12\x00", of_another_size()])
async def test_what_should_not_come_breaks_the_stream_off(
    backend: Backend, client: GrpcUpstream, last: bytes
) -> None:
    backend.serve = saying(message(0), last)
    count, error = await broken(client)
    assert (count, type(error)) == (1, EndpointFailed)


@pytest.mark.parametrize("behind", [(), (b"<html>",), (message(3),)])
async def test_what_goes_wrong_behind_the_final_response_is_of_no_concern(
    backend: Backend, client: GrpcUpstream, behind: tuple[bytes, ...]
) -> None:
    backend.serve = saying(message(1, final=True), *behind, status=grpc.StatusCode.INTERNAL)
    assert [value(each) for each in await answers(client)] == [1]


async def test_an_endpoint_that_is_not_there_was_not_sent_anything() -> None:
    backend = Backend()
    await backend.start()
    await backend.stop()
    client = upstream(backend.port)
    count, error = await broken(client)
    assert count == 0
    assert isinstance(error, EndpointFailed)
    assert not error.sent
    await client.close()


async def test_an_endpoint_without_streams_is_asked_for_its_one_answer(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.streams = False
    (response,) = await answers(client)
    assert (value(response), response.final, backend.infers) == (5, True, 1)


# ---- who stops


async def forever(_: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
    await send(message(0))
    await asyncio.get_running_loop().create_future()


async def test_a_reader_who_stops_stops_the_endpoint(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.serve = forever
    async with aclosing(client.stream(request(), call(60.0))) as stream:
        async for _ in stream:
            break
    await until(lambda: backend.cancelled == 1, timeout_s=5.0)
    assert client.pending == 0


@pytest.mark.parametrize("responses", [0, 1])
async def test_a_reader_who_is_cancelled_stops_the_endpoint(
    backend: Backend, client: GrpcUpstream, responses: int
) -> None:
    async def serve(_: Any, send: Callable[[bytes], Awaitable[None]]) -> None:
        for index in range(responses):
            await send(message(index))
        await asyncio.get_running_loop().create_future()

    backend.serve = serve
    reader = asyncio.ensure_future(answers(client, call(60.0)))
    await until(lambda: backend.requests)
    await until(lambda: backend.sent == responses)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await until(lambda: backend.cancelled == 1, timeout_s=5.0)


async def test_the_deadline_stops_both(backend: Backend, client: GrpcUpstream) -> None:
    backend.serve = forever
    begun = time.monotonic()
    count, error = await broken(client, call(0.5))
    assert (count, type(error)) == (1, EndpointTimeout)
    assert time.monotonic() - begun < 3.0
    await until(lambda: backend.cancelled == 1, timeout_s=5.0)


async def test_what_is_late_already_is_not_sent(backend: Backend, client: GrpcUpstream) -> None:
    count, error = await broken(client, call(-1.0))
    assert (count, type(error)) == (0, EndpointTimeout)
    assert not backend.requests


async def test_close_lets_a_stream_that_is_under_way_end(
    backend: Backend, client: GrpcUpstream
) -> None:
    async with aclosing(client.stream(request(), call())) as stream:
        seen = [value(await anext(stream))]
        await client.close()
        seen += [value(each) async for each in stream]
    assert seen == [0, 1, 2]
    assert client.connections == 0
    _, error = await broken(client)
    assert isinstance(error, EndpointFailed)
    assert len(backend.requests) == 1


class Noted(Drive[list[int]]):
    """A reader that is driven as the data path drives coroutines: without a task."""

    def __init__(self, client: GrpcUpstream) -> None:
        super().__init__(self._read(client), asyncio.get_running_loop())
        self.end: list[int] | BaseException | None = None
        self.start()

    async def _read(self, client: GrpcUpstream) -> list[int]:
        return [value(each) for each in await answers(client, call(60.0))]

    def done(self, result: list[int]) -> None:
        self.end = result

    def failed(self, error: BaseException) -> None:
        self.end = error


async def test_a_stream_is_read_without_a_task(backend: Backend, client: GrpcUpstream) -> None:
    reader = Noted(client)
    await until(lambda: reader.end is not None)
    assert reader.end == [0, 1, 2]
    backend.serve = forever
    reader = Noted(client)
    await until(lambda: backend.sent == 4)
    reader.cancel()
    await until(lambda: backend.cancelled == 1, timeout_s=5.0)
