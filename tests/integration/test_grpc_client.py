"""The gRPC client against servers that behave, that misbehave, and that are gone.

Run as a program, this file is such a server: it answers ModelInfer with a counter, on the port
that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.domain.calls import Call, TraceContext
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    ModelNotReady,
    PayloadTooLarge,
    QueueTimeout,
    UnknownModel,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent, RequestedOutput, Tensor
from headrace.ports.upstream import Site
from headrace.transport.http.drive import Drive
from headrace.transport.http.limits import HttpLimits
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest
from headrace.transport.oip_grpc.payload import GrpcPayload
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.oip_grpc.response import encode
from headrace.transport.oip_grpc.server import GrpcServer
from headrace.transport.oip_grpc.settings import GrpcClientSettings
from headrace.transport.oip_grpc.upstream import GrpcUpstream, channel_credentials
from headrace.transport.status import GrpcStatus
from tests.support.ports import free_port
from tests.support.waiting import until

SERVICE = "/inference.GRPCInferenceService"
METHODS = ("ModelInfer", "ServerReady", "ModelReady", "RepositoryIndex")
AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(
    tenant="default", name="triton", url="grpc://it", created_at=AT, updated_at=AT
)  # fmt: skip
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1")

Answer = Callable[[GrpcRequest], Awaitable[GrpcAnswer]]


def site(port: int, **changed: Any) -> Site:
    given: dict[str, Any] = {"host": "model.test", "port": port, "address": ip_address("127.0.0.1")}
    return Site(**(given | changed))


def upstream(port: int, **settings: Any) -> GrpcUpstream:
    return GrpcUpstream(
        ENDPOINT, site(port), settings=GrpcClientSettings(**settings), clock=time.monotonic
    )


def call(timeout_s: float = 10.0) -> Call:
    return Call("mine-1", deadline=time.monotonic() + timeout_s, trace=TRACE)


def pixels(size: int = 3) -> InferRequest:
    x = Tensor("x", "UINT8", np.arange(size, dtype=np.uint8))
    return InferRequest("m", "", decoded=InferContent([x], "42"))


class Backend:
    """A gRPC server in this process: answers as it is told, and notes what came."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self.port = server.address[1]
        self.answer: Answer = double
        self.seen: list[GrpcRequest] = []
        self.cancelled_at = 0.0

    @classmethod
    async def start(
        cls, port: int = 0, *, host: str = "127.0.0.1", max_body_bytes: int = 64 * 1024**2
    ) -> Backend:
        backend: Backend

        async def infer(request: GrpcRequest) -> GrpcAnswer:
            backend.seen.append(request)
            try:
                return await backend.answer(request)
            except asyncio.CancelledError:
                backend.cancelled_at = time.monotonic()
                raise

        backend = cls(
            await GrpcServer.listen(
                {f"{SERVICE}/{n}": infer for n in METHODS},
                {},
                address=(host, port),
                limits=HttpLimits(max_body_bytes=max_body_bytes),
            )
        )
        return backend

    async def stop(self) -> None:
        await self._server.drain(0.0)

    def asked(self) -> Any:
        """The last message, as the endpoint parsed it."""
        return schema.ModelInferRequest.FromString(self.seen[-1].message)


async def double(request: GrpcRequest) -> GrpcAnswer:
    """A model that adds every input to itself."""
    message = schema.ModelInferRequest.FromString(request.message)
    content = GrpcPayload(message, request.message).decode()
    outputs = [Tensor(f"{t.name}2", t.datatype, t.array + t.array) for t in content.inputs]
    return GrpcAnswer(encode(InferResponse(message.model_name, "7", outputs, content.id)))


def refusing(status: GrpcStatus, details: str = "", pushback: str = "") -> Answer:
    trailers = (("grpc-retry-pushback-ms", pushback),) if pushback else ()

    async def answer(_: GrpcRequest) -> GrpcAnswer:
        return GrpcAnswer(status=status, details=details, trailers=trailers)

    return answer


async def hang(_: GrpcRequest) -> GrpcAnswer:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = await Backend.start()
    yield backend
    await backend.stop()


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[GrpcUpstream]:
    client = upstream(backend.port)
    yield client
    await client.close()


class Noted(Drive[InferResponse]):
    """A request under way as the data path has it: without a task."""

    def __init__(self, coroutine: Coroutine[Any, Any, InferResponse]) -> None:
        super().__init__(coroutine, asyncio.get_running_loop())
        self.end: InferResponse | BaseException | None = None
        self.start()

    def done(self, result: InferResponse) -> None:
        self.end = result

    def failed(self, error: BaseException) -> None:
        self.end = error


# ---- what goes out, and what comes back


async def test_a_request_of_another_wire_goes_out_and_its_answer_comes_back(
    backend: Backend, client: GrpcUpstream
) -> None:
    tensors = [
        Tensor("a", "FP32", np.array([[1.5, 2.0]], np.float32)),
        Tensor("b", "BYTES", np.array([b"x", b""], np.object_)),
    ]
    content = InferContent(
        tensors,
        "42",
        {"binary_data_output": True, "priority": 2, "mine": "é", "big": 2**64 - 1},
        [RequestedOutput("a2"), RequestedOutput("b2", binary=True, classes=3)],
    )
    response = await client.infer(InferRequest("m", "3", decoded=content), call())

    asked = backend.asked()
    assert (asked.model_name, asked.model_version, asked.id) == ("m", "3", "42")
    assert asked.parameters["priority"].int64_param == 2
    assert asked.parameters["mine"].string_param == "é"
    assert asked.parameters["big"].uint64_param == 2**64 - 1
    assert "binary_data_output" not in asked.parameters
    assert [(o.name, len(o.parameters)) for o in asked.outputs] == [("a2", 0), ("b2", 1)]
    assert asked.outputs[1].parameters["classification"].int64_param == 3

    assert (response.model, response.version) == ("m", "7")
    response.unpack()
    assert response.id == "42"
    assert [t.array.tolist() for t in response.outputs] == [[[3.0, 4.0]], [b"xx", b""]]


async def test_the_endpoint_learns_the_request_id_the_trace_and_the_time_that_is_left(
    backend: Backend, client: GrpcUpstream
) -> None:
    await client.infer(pixels(), call(5.0))
    (seen,) = backend.seen
    assert seen.headers[b"x-request-id"] == b"mine-1"
    assert seen.headers[b"traceparent"].decode() == TRACE.traceparent
    assert seen.headers[b"tracestate"] == b"a=1"
    assert seen.headers[b"x-headrace-hops"] == b"1"
    assert 4.0 < seen.timeout_s < 5.1  # the library rounds up


async def test_a_request_that_passed_through_platforms_tells_of_one_more_until_it_is_a_loop(
    backend: Backend, client: GrpcUpstream
) -> None:
    await client.infer(pixels(), Call("mine-1", headers={b"x-headrace-hops": b"7"}))
    assert backend.seen[0].headers[b"x-headrace-hops"] == b"8"
    with pytest.raises(InvalidRequest, match="an endpoint leads back to one of them"):
        await client.infer(pixels(), Call("mine-1", headers={b"x-headrace-hops": b"8"}))
    assert len(backend.seen) == 1


async def test_a_message_of_this_wire_arrives_byte_for_byte_and_so_does_its_answer(
    backend: Backend, client: GrpcUpstream
) -> None:
    message = schema.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\2"])
    message.inputs.add(name="x", datatype="UINT8", shape=[2])
    body = message.SerializeToString() + b"\xd2\x3e\x01?"  # a field that only the endpoint knows
    answer = encode(InferResponse("m", "7", [])) + b"\xd2\x3e\x01!"

    async def answering(_: GrpcRequest) -> GrpcAnswer:
        return GrpcAnswer(answer)

    backend.answer = answering
    request = InferRequest("m", payload=GrpcPayload(message, body))
    response = await client.infer(request, Call("mine-1"))
    assert backend.seen[0].message == body
    assert isinstance(response.reply, GrpcReply)
    assert response.reply.body == answer


async def test_a_message_of_this_wire_has_the_time_that_is_left_behind_it(
    backend: Backend,
) -> None:
    message = schema.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\2"])
    message.inputs.add(name="x", datatype="UINT8", shape=[2])
    message.parameters["timeout"].string_param = "60000000"
    message.parameters["mine"].int64_param = 7
    body = message.SerializeToString()
    for settings in ({}, {"send_timeout": False}):
        client = upstream(backend.port, **settings)
        await client.infer(InferRequest("m", payload=GrpcPayload(message, body)), call(5.0))
        sent = backend.seen[-1].message
        assert sent.startswith(body)
        assert (sent == body) is bool(settings)
        await client.close()
    asked = schema.ModelInferRequest.FromString(backend.seen[0].message)
    assert 4_000_000 < asked.parameters["timeout"].int64_param <= 5_000_000
    assert asked.parameters["mine"].int64_param == 7
    for own, told in ((1000, 1000), (6_000_000, 5_000_000), (0, 5_000_000)):
        message.parameters["timeout"].int64_param = own
        request = InferRequest("m", payload=GrpcPayload(message, message.SerializeToString()))
        client = upstream(backend.port)
        await client.infer(request, call(5.0))
        assert told * 0.8 <= backend.asked().parameters["timeout"].int64_param <= told
        await client.close()


async def test_a_report_over_its_limit_is_refused_as_it_comes(
    backend: Backend, client: GrpcUpstream
) -> None:
    async def answering(_: GrpcRequest) -> GrpcAnswer:
        index = schema.RepositoryIndexResponse()
        index.models.add(name="x" * 5_000_000)
        return GrpcAnswer(index.SerializeToString())

    backend.answer = answering
    assert client.models is not None
    with pytest.raises(EndpointFailed, match="too large"):
        await client.models.index(time.monotonic() + 10.0)


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
async def test_requests_are_compressed_where_that_is_set(
    backend: Backend, compression: str
) -> None:
    sent_bytes = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        count = 0
        while data := await reader.read(65536):
            count += len(data)
            writer.write(data)
        writer.close()
        return count

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        beyond = await asyncio.open_connection("127.0.0.1", backend.port)
        sent_bytes, _ = await asyncio.gather(forward(reader, beyond[1]), forward(beyond[0], writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    client = upstream(server.sockets[0].getsockname()[1], compression=compression)
    response = await client.infer(pixels(100_000), call())
    response.unpack()
    assert response.outputs[0].array.shape == (100_000,)
    await client.close()
    await until(lambda: sent_bytes)
    assert (sent_bytes < 50_000) is (compression != "none")
    server.close()


async def test_a_request_without_a_deadline_is_answered(
    backend: Backend, client: GrpcUpstream
) -> None:
    response = await client.infer(pixels(), Call("mine-1"))
    assert response.version == "7"
    assert backend.seen[0].timeout_s == math.inf


async def test_large_tensors_pass(client: GrpcUpstream) -> None:
    request = pixels(8 * 1024**2)
    response = await client.infer(request, call())
    response.unpack()
    assert response.outputs[0].array.shape == (8 * 1024**2,)


# ---- statuses


STATUSES: list[tuple[GrpcStatus, str, type[HeadraceError], str]] = [  # status, text, and error
    (GrpcStatus.INVALID_ARGUMENT, "no\x00 x", InvalidRequest, "no  x"),
    (GrpcStatus.INVALID_ARGUMENT, "ä" * 2000, InvalidRequest, "ä" * 512),
    (GrpcStatus.NOT_FOUND, "no model x", UnknownModel, "no model x"),
    (GrpcStatus.ALREADY_EXISTS, "x is there", InvalidRequest, "x is there"),
    (
        GrpcStatus.UNAVAILABLE,
        "Request for unknown model: 'x' is not found",
        UnknownModel,
        "Request for unknown model: 'x' is not found",
    ),
    (
        GrpcStatus.UNAVAILABLE,
        "Request for unknown model: 'x' version 1 is not at ready state",
        ModelNotReady,
        "Request for unknown model: 'x' version 1 is not at ready state",
    ),
    (
        GrpcStatus.UNAVAILABLE,
        "Request timeout expired",
        QueueTimeout,
        "the request waited at the endpoint for longer than it may",
    ),
    (
        GrpcStatus.UNAVAILABLE,
        "[request id: a] b] Exceeds maximum queue size",
        EndpointBusy,
        "the endpoint has no room at this moment",
    ),
    (GrpcStatus.UNIMPLEMENTED, "sequences", Unsupported, "sequences"),
    (GrpcStatus.DEADLINE_EXCEEDED, "slow", EndpointTimeout, "the endpoint did not answer in time"),
    (GrpcStatus.RESOURCE_EXHAUSTED, "full", EndpointBusy, "the endpoint has no room"),
    (
        GrpcStatus.RESOURCE_EXHAUSTED,
        "grpc: received message larger than max (9 vs. 8)",
        PayloadTooLarge,
        "the request is larger than the endpoint takes",
    ),
    (GrpcStatus.UNAUTHENTICATED, "10.0.0.1 secret", EndpointFailed, "the endpoint failed"),
    (GrpcStatus.PERMISSION_DENIED, "10.0.0.1 secret", EndpointFailed, "the endpoint failed"),
    (GrpcStatus.INTERNAL, "10.0.0.1 secret", EndpointFailed, "the endpoint failed"),
    (GrpcStatus.UNAVAILABLE, "10.0.0.1 secret", EndpointFailed, "the endpoint failed"),
]


@pytest.mark.parametrize("case", STATUSES)
async def test_a_status_becomes_the_error_that_it_means(
    backend: Backend, client: GrpcUpstream, case: tuple[GrpcStatus, str, type[HeadraceError], str]
) -> None:
    status, details, kind, message = case
    backend.answer = refusing(status, details)
    with pytest.raises(kind) as raised:
        await client.infer(pixels(), call())
    assert (type(raised.value), raised.value.message) == (kind, message)
    if isinstance(raised.value, EndpointFailed):
        assert raised.value.reason == f"{status.name}: {details}"


@pytest.mark.parametrize(
    ("pushback", "retry_after_s"),
    [("1500", 1.5), ("0", 0.0), ("-1", None), ("soon", None), ("9" * 5000, None), ("", None)],
)
@pytest.mark.parametrize("status", [GrpcStatus.UNAVAILABLE, GrpcStatus.RESOURCE_EXHAUSTED])
async def test_the_time_that_an_endpoint_asks_for_is_handed_on(
    backend: Backend,
    client: GrpcUpstream,
    status: GrpcStatus,
    pushback: str,
    retry_after_s: float | None,
) -> None:
    backend.answer = refusing(status, "later", pushback)
    with pytest.raises((EndpointFailed, EndpointBusy)) as raised:
        await client.infer(pixels(), call())
    assert raised.value.retry_after_s == retry_after_s


async def test_a_message_over_the_endpoints_limit_is_told_from_an_endpoint_without_room() -> None:
    backend = await Backend.start(max_body_bytes=1000)
    client = upstream(backend.port)
    with pytest.raises(PayloadTooLarge):
        await client.infer(pixels(5000), call())
    await client.close()
    await backend.stop()


async def test_an_answer_over_the_limit_is_the_endpoints_failure(backend: Backend) -> None:
    client = upstream(backend.port, max_answer_bytes=1000)
    with pytest.raises(EndpointFailed, match="answer is too large"):
        await client.infer(pixels(5000), call())
    await client.close()


async def test_a_text_over_the_limit_of_headers_is_the_endpoints_failure(
    backend: Backend, client: GrpcUpstream
) -> None:
    backend.answer = refusing(GrpcStatus.INVALID_ARGUMENT, "x" * 100_000)
    with pytest.raises(EndpointFailed):
        await client.infer(pixels(), call())


async def test_an_answer_that_is_no_message_is_the_endpoints_failure(
    backend: Backend, client: GrpcUpstream
) -> None:
    async def nonsense(_: GrpcRequest) -> GrpcAnswer:
        return GrpcAnswer(b"<html>no</html>")

    backend.answer = nonsense
    with pytest.raises(EndpointFailed, match="not a well-formed one"):
        await client.infer(pixels(), call())


async def test_an_endpoint_that_fails_is_asked_once(backend: Backend, client: GrpcUpstream) -> None:
    backend.answer = refusing(GrpcStatus.UNAVAILABLE)
    with pytest.raises(EndpointFailed):
        await client.infer(pixels(), call())
    assert len(backend.seen) == 1


# ---- without a task, and cancelled


async def test_the_data_path_asks_without_a_task(backend: Backend, client: GrpcUpstream) -> None:
    drive = Noted(client.infer(pixels(), call()))
    await until(lambda: drive.end is not None)
    assert isinstance(drive.end, InferResponse)
    backend.answer = refusing(GrpcStatus.NOT_FOUND)
    drive = Noted(client.infer(pixels(), call()))
    await until(lambda: drive.end is not None)
    assert isinstance(drive.end, UnknownModel)


@pytest.mark.parametrize("driven", [True, False])
async def test_an_attempt_that_is_cancelled_is_cancelled_at_the_endpoint(
    backend: Backend, client: GrpcUpstream, *, driven: bool
) -> None:
    backend.answer = hang
    attempt = client.infer(pixels(), call(60.0))
    under_way = Noted(attempt) if driven else asyncio.ensure_future(attempt)
    await until(lambda: backend.seen)
    cancelled_at = time.monotonic()
    under_way.cancel()
    await until(lambda: backend.cancelled_at, timeout_s=5.0)
    assert backend.cancelled_at - cancelled_at < 1.0
    if isinstance(under_way, Noted):
        assert isinstance(under_way.end, asyncio.CancelledError)
    else:
        with pytest.raises(asyncio.CancelledError):
            await under_way


@pytest.mark.parametrize("over", ["failed", "late", "cancelled"])
async def test_the_message_of_a_request_that_is_over_goes_with_its_error(
    backend: Backend, client: GrpcUpstream, over: str
) -> None:
    message = schema.ModelInferRequest(model_name="m", raw_input_contents=[bytes(1000)])
    body = message.SerializeToString()
    backend.answer = refusing(GrpcStatus.INTERNAL) if over == "failed" else hang
    await client.unready("", "", time.monotonic() + 0.1)  # connects
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(body)
        request = InferRequest("m", payload=GrpcPayload(message, body))
        within = call(0.2 if over == "late" else 10.0)
        task = asyncio.create_task(client.infer(request, within))
        del request
        if over == "cancelled":
            await until(lambda: len(backend.seen) > 1)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception()
        del task
        await until(lambda: sys.getrefcount(body) == before)
    finally:
        gc.enable()


async def test_an_attempt_cancelled_at_any_moment_ends_as_cancelled_or_answered(
    client: GrpcUpstream,
) -> None:
    await client.infer(pixels(), call())
    for turns in range(60):
        drive = Noted(client.infer(pixels(), call()))
        for _ in range(turns):
            await asyncio.sleep(0)
        if drive.end is not None:
            continue
        drive.cancel()
        await until(lambda d=drive: d.end is not None)  # type: ignore[misc]
        assert isinstance(drive.end, asyncio.CancelledError)
    assert (await client.infer(pixels(), call())).version == "7"


async def test_an_endpoint_that_takes_too_long_is_given_up_at_the_deadline(
    backend: Backend, client: GrpcUpstream
) -> None:
    await client.infer(pixels(), call())
    backend.answer = hang
    began = time.monotonic()
    with pytest.raises(EndpointTimeout):
        await client.infer(pixels(), call(0.5))
    assert 0.45 <= time.monotonic() - began < 0.9
    await until(lambda: backend.cancelled_at, timeout_s=5.0)


async def test_what_is_late_already_is_not_sent(backend: Backend, client: GrpcUpstream) -> None:
    with pytest.raises(EndpointTimeout):
        await client.infer(pixels(), call(-0.1))
    assert backend.seen == []
    assert client.connections == 0


# ---- connections


async def test_connections_are_opened_when_needed_and_shared_out(
    backend: Backend, client: GrpcUpstream
) -> None:
    assert (client.connections, client.pending) == (0, 0)
    await client.infer(pixels(), call())
    await client.infer(pixels(), call())
    assert client.connections == 1
    backend.answer = hang
    drives = [Noted(client.infer(pixels(), call(30.0))) for _ in range(8)]
    assert client.pending == 4  # on the connection that is being made
    await until(lambda: len(backend.seen) == 10)
    assert (client.connections, client.pending) == (2, 0)
    assert established(backend.port) == 2
    for drive in drives:
        drive.cancel()
    await until(lambda: all(drive.end is not None for drive in drives))


def established(port: int) -> int:
    """How many connections to a port of this machine there are, as the kernel counts them."""
    tables = [Path(f"/proc/net/{name}").read_text("ascii") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


async def test_close_lets_what_is_under_way_end(backend: Backend, client: GrpcUpstream) -> None:
    going_on = asyncio.get_running_loop().create_future()

    async def slow(request: GrpcRequest) -> GrpcAnswer:
        await going_on
        return await double(request)

    backend.answer = slow
    drive = Noted(client.infer(pixels(), call()))
    await until(lambda: backend.seen)
    await client.close()
    with pytest.raises(EndpointFailed, match="no longer asked"):
        await client.infer(pixels(), call())
    assert client.connections == 1
    going_on.set_result(None)
    await until(lambda: drive.end is not None)
    assert isinstance(drive.end, InferResponse)
    assert client.connections == 0
    await until(lambda: established(backend.port) == 0, timeout_s=5.0)


async def test_an_address_of_ip_version_6_is_reached() -> None:
    backend = await Backend.start(host="::1")
    there = site(backend.port, host="::1", address=ip_address("::1"))
    client = GrpcUpstream(ENDPOINT, there, settings=GrpcClientSettings(), clock=time.monotonic)
    assert (await client.infer(pixels(), call())).version == "7"
    await client.close()
    await backend.stop()


async def test_the_endpoint_is_called_by_the_name_in_its_url() -> None:
    received = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # HTTP/2 begins with SETTINGS
        while b"mine-1" not in received and (block := await reader.read(4096)):
            received.extend(block)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = upstream(port)
    with pytest.raises(EndpointFailed):
        await client.infer(pixels(), call())
    assert f"model.test:{port}".encode() in received
    await client.close()
    server.close()


async def test_a_proxy_of_the_environment_is_not_used(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = upstream(backend.port)
    assert (await client.infer(pixels(), call())).version == "7"
    await client.close()


# ---- readiness


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(("model", "version"), [("", ""), ("m", ""), ("m", "3")])
async def test_readiness_is_what_the_endpoint_says_of_itself_or_a_model(
    backend: Backend, client: GrpcUpstream, model: str, version: str, *, ready: bool
) -> None:
    async def answering(_: GrpcRequest) -> GrpcAnswer:
        return GrpcAnswer(schema.ServerReadyResponse(ready=ready).SerializeToString())

    backend.answer = answering
    assert (await client.unready(model, version, time.monotonic() + 5.0) == "") is ready
    asked = schema.ModelReadyRequest.FromString(backend.seen[0].message)
    assert (asked.name, asked.version) == (model, version)


async def test_an_endpoint_that_fails_lags_or_is_closed_is_not_ready(
    backend: Backend, client: GrpcUpstream
) -> None:
    for answer in (refusing(GrpcStatus.NOT_FOUND), hang):
        backend.answer = answer
        assert await client.unready("m", "", time.monotonic() + 0.3)
    await client.close()
    assert await client.unready("", "", time.monotonic() + 5.0)


# ---- endpoints that are not there


async def test_an_endpoint_that_is_not_there_fails_at_once_and_is_found_when_it_comes() -> None:
    port = free_port()
    client = upstream(port)
    began = time.monotonic()
    with pytest.raises(EndpointFailed) as raised:
        await client.infer(pixels(), call())
    assert time.monotonic() - began < 1.0
    assert raised.value.message == "the endpoint failed"
    assert str(port) in raised.value.reason
    assert await client.unready("", "", time.monotonic() + 1.0)

    for _ in range(2):  # and once more, after a restart
        backend = await Backend.start(port)
        await until(lambda: answered(client), timeout_s=2.0)
        await backend.stop()
    await client.close()


async def answered(client: GrpcUpstream) -> bool:
    with contextlib.suppress(EndpointFailed):
        return (await client.infer(pixels(), call())).version != ""
    return False


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b""])
async def test_what_speaks_no_grpc_fails_before_the_deadline(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(said)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    client = upstream(server.sockets[0].getsockname()[1])
    began = time.monotonic()
    with pytest.raises(EndpointFailed):
        await client.infer(pixels(), call())
    assert time.monotonic() - began < 5.0
    await client.close()
    server.close()


async def test_what_accepts_and_never_speaks_is_given_up_after_the_time_to_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = upstream(listening.getsockname()[1], connect_timeout_s=0.5)
        began = time.monotonic()
        with pytest.raises(EndpointFailed):
            await client.infer(pixels(), call())
        assert 0.4 < time.monotonic() - began < 2.0
        assert client.connections == 0
        await client.close()


@contextlib.asynccontextmanager
async def process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """This file as a server."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.test_grpc_client", str(port)
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def test_an_endpoint_killed_under_load_fails_what_it_had_and_is_found_again() -> None:
    port = free_port()
    client = upstream(port)
    async with process(port) as first:
        await until(lambda: answered(client))
        drives = [Noted(client.infer(pixels(), call(30.0))) for _ in range(200)]
        await until(lambda: any(drive.end is not None for drive in drives))
        first.kill()
        await until(lambda: all(drive.end is not None for drive in drives), timeout_s=5.0)
        ends = {type(drive.end) for drive in drives}
        assert ends <= {InferResponse, EndpointFailed}
        await until(lambda: client.connections == 0)
    async with process(port):
        await until(lambda: listens(port))
        await until(lambda: answered(client), timeout_s=5.0)  # 1.2 s, and as slow as the machine is
    await client.close()


async def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True
    return False


async def test_an_endpoint_that_stands_still_is_given_up_at_the_deadline() -> None:
    port = free_port()
    client = upstream(port)
    async with process(port) as stopped:
        await until(lambda: answered(client))
        os.kill(stopped.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EndpointTimeout):
            await client.infer(pixels(), call(0.5))
        assert 0.45 <= time.monotonic() - began < 0.9
        assert await client.unready("", "", time.monotonic() + 0.2)
        os.kill(stopped.pid, signal.SIGCONT)
        assert (await client.infer(pixels(), call())).version == "7"
    await client.close()


# ---- TLS


def certified(name: str) -> tuple[bytes, bytes]:
    """A certificate for a host name, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    text = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    return made.public_bytes(pem), text


@contextlib.asynccontextmanager
async def secured(*, clients: bytes | None = None) -> AsyncIterator[tuple[int, bytes]]:
    """A server as model.test; its port, and its certificate. It wants clients to show `clients`."""
    certificate, key = certified("model.test")

    async def infer(_: bytes, context: Any) -> bytes:
        await context.send_initial_metadata(())
        return encode(InferResponse("m", "7", []))

    rpc = grpc.unary_unary_rpc_method_handler(infer)
    handlers = grpc.method_handlers_generic_handler("inference.GRPCInferenceService",
                                                    {"ModelInfer": rpc})  # fmt: skip
    server = grpc.aio.server(handlers=[handlers])
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], clients, require_client_auth=clients is not None
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield port, certificate
    await server.stop(0)


def secure_upstream(port: int, host: str, credentials: grpc.ChannelCredentials) -> GrpcUpstream:
    return GrpcUpstream(
        ENDPOINT,
        site(port, host=host, secure=True),
        settings=GrpcClientSettings(),
        clock=time.monotonic,
        credentials=credentials,
    )


@pytest.mark.parametrize(
    ("host", "trusted"), [("model.test", True), ("other.test", True), ("model.test", False)]
)
async def test_the_certificate_must_be_trusted_and_name_the_host(
    host: str, *, trusted: bool
) -> None:
    async with secured() as (port, certificate):
        ca = certificate if trusted else certified("model.test")[0]
        client = secure_upstream(port, host, channel_credentials(ca, None, None))
        if trusted and host == "model.test":
            assert (await client.infer(pixels(), call())).version == "7"
        else:
            with pytest.raises(EndpointFailed):
                await client.infer(pixels(), call())
        await client.close()


@pytest.mark.parametrize("shown", [True, False])
async def test_the_endpoint_is_shown_the_clients_certificate(*, shown: bool) -> None:
    mine, key = certified("headrace")
    async with secured(clients=mine) as (port, certificate):
        pair = (mine, key) if shown else (None, None)
        client = secure_upstream(port, "model.test", channel_credentials(certificate, *pair))
        if shown:
            assert (await client.infer(pixels(), call())).version == "7"
        else:
            with pytest.raises(EndpointFailed):
                await client.infer(pixels(), call())
        await client.close()


async def _serve(port: int) -> None:
    await Backend.start(port)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
