"""The clients of endpoints against a real Triton."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    ModelLoadFailed,
    QueueTimeout,
    UnknownModel,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Array, InferContent, Tensor
from headrace.ports.remote_models import RemoteModels
from headrace.ports.upstream import Site
from headrace.router.verdicts import verdict
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.payload import GrpcPayload
from headrace.transport.oip_grpc.settings import GrpcClientSettings
from headrace.transport.oip_grpc.upstream import GrpcUpstream, channel_credentials
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.upstream import RestUpstream
from tests.support.tls_front import authority
from tests.support.triton import Triton, running
from tests.support.waiting import until

AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(tenant="default", name="triton", url="", created_at=AT, updated_at=AT)
ADDRESS = ip_address("127.0.0.1")
WIRES = ("rest", "grpc")

Client: TypeAlias = RestUpstream | GrpcUpstream


def connect(wire: str, server: Triton, **settings: Any) -> Client:
    if wire == "grpc":
        return GrpcUpstream(
            ENDPOINT,
            Site("localhost", server.grpc_port, ADDRESS),
            settings=GrpcClientSettings(**settings),
            clock=time.monotonic,
        )
    site = Site("localhost", server.http_port, ADDRESS)
    pool = ClientPool(site, limits=ClientLimits(**settings))
    return RestUpstream(ENDPOINT, site, pool=pool, clock=time.monotonic, wall_clock=time.time)


@contextlib.asynccontextmanager
async def connected(wire: str, server: Triton, **settings: Any) -> AsyncIterator[Client]:
    client = connect(wire, server, **settings)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture(params=WIRES)
async def client(request: pytest.FixtureRequest, triton: Triton) -> AsyncIterator[Client]:
    async with connected(request.param, triton) as client:
        yield client


@pytest.fixture
async def grpc_client(triton: Triton) -> AsyncIterator[Client]:
    async with connected("grpc", triton) as client:
        yield client


def call(timeout_s: float = 20.0) -> Call:
    return Call("mine-1", deadline=time.monotonic() + timeout_s)


def asked(model: str, version: str = "", **inputs: Array) -> InferRequest:
    datatypes = {"f": "FP32", "e": "FP16", "i": "INT32", "l": "INT64", "O": "BYTES", "H": "BF16"}
    tensors = [Tensor(n, datatypes[a.dtype.char], a) for n, a in inputs.items()]
    return InferRequest(model, version, decoded=InferContent(tensors, uuid.uuid4().hex))


def floats(rows: int = 1, columns: int = 2) -> Array:
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def milliseconds(value: int) -> Array:
    return np.array([[value]], np.int32)


def outputs(response: InferResponse) -> dict[str, Any]:
    response.unpack()
    return {tensor.name: tensor.array.tolist() for tensor in response.outputs}


async def refused(work: Coroutine[Any, Any, object]) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await work
    return caught.value


async def read(client: Client, request: InferRequest, timeout_s: float = 20.0) -> list[Any]:
    async with aclosing(client.stream(request, call(timeout_s))) as stream:
        return [(response.final, outputs(response)) async for response in stream]


def models(client: Client) -> RemoteModels:
    return client.models


def soon() -> float:
    return time.monotonic() + 20.0


# ---- what models are


async def test_both_wires_report_the_same_of_models(triton: Triton) -> None:
    async with connected("rest", triton) as rest, connected("grpc", triton) as grpc:
        await rest.infer(asked("versioned", x=np.ones((1, 1), np.float32)), call())
        await grpc.infer(asked("versioned", x=np.ones((1, 1), np.float32)), call())
        asks: list[Callable[[RemoteModels], Awaitable[object]]] = [
            lambda models: models.metadata("versioned", "", soon()),
            lambda models: models.metadata("versioned", "1", soon()),
            lambda models: models.statistics("versioned", "", soon()),
            lambda models: models.statistics("versioned", "2", soon()),
            lambda models: models.statistics("", "", soon()),
            lambda models: models.index(soon()),
        ]
        for ask in asks:
            assert await ask(models(rest)) == await ask(models(grpc))
        metadata = await models(rest).metadata("versioned", "", soon())
        assert (metadata.versions, metadata.inputs[0].shape) == (("1", "2"), (-1, 1))
        (statistics,) = await models(grpc).statistics("versioned", "2", soon())
        assert statistics["inference_stats"]["success"]["count"] >= 2
        assert statistics["last_inference"] > 0


async def test_a_configuration_over_grpc_is_a_part_of_that_over_rest(triton: Triton) -> None:
    async with connected("rest", triton) as rest, connected("grpc", triton) as grpc:
        for model in ("identity", "stream", "slow", "versioned"):
            whole = await models(rest).config(model, "", soon())
            part = await models(grpc).config(model, "", soon())
            assert_within(part, whole)
        config = await models(grpc).config("stream", "", soon())
        assert config["model_transaction_policy"] == {"decoupled": True}


def assert_within(part: Any, whole: Any) -> None:
    """Every field of `part` is in `whole` with the same value, but for those left empty."""
    if isinstance(part, dict):
        for key, value in part.items():
            if value not in ("", 0, False, {}, []):
                assert_within(value, whole[key])
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for one, other in zip(part, whole, strict=True):
            assert_within(one, other)
    else:
        assert part == whole


async def test_what_is_not_there_is_unknown_to_every_call(client: Client) -> None:
    for model, version in (("nope", ""), ("nope", "1"), ("identity", "7")):
        for ask in (models(client).metadata, models(client).config, models(client).statistics):
            assert type(await refused(ask(model, version, soon()))) is UnknownModel
        assert await client.unready(model, version, soon())
    error = await refused(models(client).load("nope", soon()))
    assert type(error) is ModelLoadFailed
    assert error.message == "failed to load 'nope', failed to poll from model repository"
    assert await client.unready("", "", soon()) == ""
    assert await client.unready("identity", "1", soon()) == ""


@pytest.mark.parametrize("wire", WIRES)
async def test_models_are_loaded_configured_and_unloaded(wire: str, tmp_path: Path) -> None:
    with running(tmp_path, models=["versioned"], load=()) as server:
        async with connected(wire, server) as client:
            control = models(client)
            await control.load("versioned", soon())
            assert [entry.state for entry in await control.index(soon())] == ["READY", "READY"]
            request = asked("versioned", x=np.ones((1, 1), np.float32))
            assert outputs(await client.infer(request, call())) == {"version": [[2]]}

            config = dict(await control.config("versioned", "", soon()))
            config["version_policy"] = {"specific": {"versions": [1]}}
            await control.load("versioned", soon(), config_json=json.dumps(config).encode())
            assert outputs(await client.infer(request, call())) == {"version": [[1]]}
            await control.unload("versioned", soon())

            async def gone() -> bool:
                return {e.reason for e in await control.index(soon())} == {"unloaded"}

            await until(gone)
            error = await refused(client.infer(request, call()))
            assert type(error) is UnknownModel
            assert "'versioned' has no available versions" in error.message

            bad = b'{"backend":"nothing"}'
            error = await refused(control.load("versioned", soon(), config_json=bad))
            assert type(error) is InvalidRequest
            assert error.message.startswith("load failed for model 'versioned'")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_server_that_does_not_load_on_command_says_so(wire: str, tmp_path: Path) -> None:
    mode = ("--model-control-mode=none",)
    with running(tmp_path, models=["identity"], load=(), arguments=mode) as server:
        async with connected(wire, server) as client:
            assert type(await refused(models(client).load("identity", soon()))) is Unsupported
            assert type(await refused(models(client).unload("identity", soon()))) is Unsupported


# ---- tensors


async def test_every_kind_of_tensor_comes_back_as_it_went(client: Client) -> None:
    x = floats(2, 3)
    assert outputs(await client.infer(asked("identity", x=x), call())) == {"y": x.tolist()}
    halves = np.array([[1.5, -0.0, 65504.0]], np.float16)
    assert outputs(await client.infer(asked("halves", x=halves), call())) == {"y": halves.tolist()}
    texts = np.array([[b"abc", b"", b"\xff\0", "é".encode()]], np.object_)
    assert outputs(await client.infer(asked("strings", x=texts), call())) == {
        "y": [[each[::-1] for each in texts[0]]]
    }
    bfloats = Tensor("x", "BF16", np.array([[1.5, -2.0]], np.float32))
    request = InferRequest("bfloats", decoded=InferContent([bfloats], "b"))
    assert outputs(await client.infer(request, call())) == {"y": [[1.5, -2.0]]}


async def test_bodies_of_both_wires_pass_with_the_time_that_is_left(triton: Triton) -> None:
    text = b'{ "inputs": [], "id": "j", "parameters": {"a": 1} }'
    for payload in (
        RestPayload(text),
        RestPayload([text[:5], text[5:]]),
        RestPayload(text, len(text)),
        RestPayload(b'{"inputs":[]}'),
    ):
        async with connected("rest", triton) as client:
            response = await client.infer(InferRequest("echo", payload=payload), call(20.0))
            assert 10_000_000 < seen(response)["timeout_us"] <= 20_000_000
    message = schema.ModelInferRequest(model_name="echo", id="g")
    message.parameters["timeout"].int64_param = 30_000_000
    message.parameters["a"].int64_param = 1
    sent = GrpcPayload(message, message.SerializeToString())
    async with connected("grpc", triton) as client:
        response = await client.infer(InferRequest("echo", payload=sent), call(20.0))
        assert 10_000_000 < seen(response)["timeout_us"] <= 20_000_000
        assert seen(response)["parameters"] == {"a": 1}


@pytest.mark.parametrize("wire", WIRES)
async def test_an_endpoint_is_told_of_no_time_where_that_is_set_so(
    wire: str, triton: Triton
) -> None:
    async with connected(wire, triton, send_timeout=False) as client:
        assert seen(await client.infer(asked("echo"), call()))["timeout_us"] == 0
    async with connected(wire, triton) as client:
        response = await client.infer(asked("echo"), Call("without a deadline"))
        assert seen(response)["timeout_us"] == 0


def seen(response: InferResponse) -> dict[str, Any]:
    response.unpack()
    document: dict[str, Any] = json.loads(response.outputs[0].array.flat[0])
    return document


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("wire", WIRES)
async def test_compressed_requests_and_answers_pass(
    wire: str, compression: str, triton: Triton
) -> None:
    x = np.zeros((8, 10_000), np.float32)
    async with connected(wire, triton, compression=compression) as client:
        assert outputs(await client.infer(asked("identity", x=x), call())) == {"y": x.tolist()}
        small = outputs(await client.infer(asked("identity", x=floats()), call()))
        assert small == {"y": [[0.0, 1.0]]}
        text = json.dumps({"inputs": [{"name": "x", "shape": [1, 2000], "datatype": "FP32",
                                       "data": [0.5] * 2000}]}).encode()  # fmt: skip
        if wire == "rest":
            passed = InferRequest("identity", payload=RestPayload(text))
            assert outputs(await client.infer(passed, call())) == {"y": [[0.5] * 2000]}


async def test_an_answer_over_the_limit_is_the_endpoints_failure(triton: Triton) -> None:
    request = asked("identity", x=floats(1, 5000))
    for wire, limit in (("rest", "max_body_bytes"), ("grpc", "max_answer_bytes")):
        for compression in ("none", "gzip"):
            settings: dict[str, Any] = {limit: 4096, "compression": compression}
            async with connected(wire, triton, **settings) as client:
                error = await refused(client.infer(request, call()))
                assert isinstance(error, EndpointFailed), (wire, compression)


# ---- refusals and failures


async def test_a_request_that_does_not_fit_is_refused_in_tritons_words(client: Client) -> None:
    for request, words in (
        (asked("identity", x=floats(9)), "batch-size must be <= 8 for 'identity'"),
        (asked("identity", x=np.ones((1, 1), np.int32)), "data-type is 'INT32'"),
        (asked("mlp", x=floats(1, 3)), "unexpected shape for input 'x' for model 'mlp'"),
        (asked("identity", z=floats()), "unexpected inference input 'z'"),
        (asked("identity"), "missing required input(s) ['x']"),
    ):
        error = await refused(client.infer(request, call()))
        assert type(error) is InvalidRequest
        assert words in error.message
        assert not verdict(error, seconds=0.1, usual_s=0.1).failed
    for request in (asked("nope", x=floats()), asked("identity", "7", x=floats())):
        assert type(await refused(client.infer(request, call()))) is UnknownModel


@pytest.mark.parametrize(
    "body",
    [b'{"inputs":', b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1]}]}',
     b'{"inputs":[{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}]}',
     b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":["a"]}]}'],
)  # fmt: skip
async def test_a_body_that_triton_cannot_read_is_the_clients_fault(
    triton: Triton, body: bytes
) -> None:
    async with connected("rest", triton) as client:
        request = InferRequest("identity", payload=RestPayload(body))
        error = await refused(client.infer(request, call()))
        assert type(error) is InvalidRequest, error.message


async def test_what_a_model_does_wrong_is_the_endpoints_failure(client: Client) -> None:
    for how in (b"raise", b"INTERNAL", b"UNAVAILABLE"):
        request = asked("failing", how=np.array([[how]], np.object_))
        error = await refused(client.infer(request, call()))
        assert isinstance(error, EndpointFailed)
        assert "on purpose" in error.reason
        assert "on purpose" not in error.message
        assert verdict(error, seconds=0.1, usual_s=0.1).failed


async def test_a_model_whose_program_has_ended_fails_until_it_is_loaded_again(
    tmp_path: Path,
) -> None:
    with running(tmp_path, models=["failing"]) as server:
        server.kill_program("failing")
        request = asked("failing", how=np.array([[b""]], np.object_))
        for wire in WIRES:
            async with connected(wire, server) as client:
                error = await refused(client.infer(request, call()))
                assert isinstance(error, EndpointFailed)
                assert "is not healthy" in error.reason
                assert await client.unready("failing", "", soon()) == ""  # so Triton says
        async with connected("grpc", server) as client:
            await models(client).load("failing", soon())
            assert outputs(await client.infer(request, call())) == {"how": [[b""]]}


# ---- time


async def test_a_request_that_waits_in_the_queue_for_too_long_is_no_failure(
    client: Client, triton: Triton
) -> None:
    busy = asked("slow", ms=milliseconds(1000))
    running_one = asyncio.ensure_future(client.infer(busy, call()))
    started = f"{busy.content.id} started"
    await until(lambda: started in triton.journal("slow"))
    content = asked("slow", ms=milliseconds(1)).content
    short = InferContent(content.inputs, content.id, {"timeout": 100_000})
    error = await refused(client.infer(InferRequest("slow", decoded=short), call()))
    assert type(error) is QueueTimeout
    assert verdict(error, seconds=0.1, usual_s=0.1).failed is None
    await running_one


async def test_a_full_queue_is_an_endpoint_without_room(client: Client, triton: Triton) -> None:
    busy = asked("queued", ms=milliseconds(2000))
    first = asyncio.ensure_future(client.infer(busy, call()))
    started = f"{busy.content.id} started"
    await until(lambda: started in triton.journal("queued"))
    others = [client.infer(asked("queued", ms=milliseconds(1)), call()) for _ in range(4)]
    ends = await asyncio.gather(*others, return_exceptions=True)  # one of them fits in
    assert [type(end) for end in ends].count(EndpointBusy) == 3
    await first


async def test_the_deadline_cancels_at_the_model_over_grpc(
    triton: Triton, grpc_client: Client
) -> None:
    request = asked("slow", ms=milliseconds(5000))
    begun = time.monotonic()
    error = await refused(grpc_client.infer(request, call(0.5)))
    assert type(error) is EndpointTimeout
    assert time.monotonic() - begun < 2.0
    await until(lambda: f"{request.content.id} cancelled" in triton.journal("slow"))


async def test_a_cancelled_attempt_is_cancelled_at_the_model_over_grpc(
    triton: Triton, grpc_client: Client
) -> None:
    request = asked("slow", ms=milliseconds(5000))
    attempt = asyncio.ensure_future(grpc_client.infer(request, call()))
    await until(lambda: f"{request.content.id} started" in triton.journal("slow"))
    attempt.cancel()
    await until(lambda: f"{request.content.id} cancelled" in triton.journal("slow"))


# ---- streams


def numbers(count: int, *, delay_ms: int = 0, fail_after: int = -1) -> InferRequest:
    inputs = {"count": count, "delay_ms": delay_ms, "fail_after": fail_after}
    tensors = {name: np.array([value], np.int32) for name, value in inputs.items()}
    return asked("stream", "", **tensors)


async def test_a_decoupled_model_answers_as_often_as_it_likes(grpc_client: Client) -> None:
    for count in (0, 1, 5):
        assert await read(grpc_client, numbers(count)) == [
            *((False, {"index": [index]}) for index in range(count)),
            (True, {}),  # asked for, so that no answer at all can be told from none that came
        ]


async def test_the_end_of_a_stream_is_told_where_it_was_asked_for(grpc_client: Client) -> None:
    content = numbers(1).content
    wants = InferContent(content.inputs, "e", {"triton_enable_empty_final_response": True})
    request = InferRequest("stream", decoded=wants)
    assert await read(grpc_client, request) == [(False, {"index": [0]}), (True, {})]


async def test_a_model_that_answers_once_is_final_in_a_stream(client: Client) -> None:
    request = asked("identity", x=floats())
    assert await read(client, request) == [(True, {"y": [[0.0, 1.0]]})]


async def test_a_decoupled_model_is_not_asked_for_one_answer(
    client: Client, triton: Triton
) -> None:
    error = await refused(client.infer(numbers(1), call()))
    assert type(error) is Unsupported
    assert error.message.endswith("doesn't support models with decoupled transaction policy")
    async with connected("rest", triton) as rest:
        error = await refused(read(rest, numbers(1)))
        assert type(error) is Unsupported
        assert "gRPC address" in error.message


@pytest.mark.parametrize("before", [0, 2])
async def test_an_error_of_the_model_breaks_the_stream_off(
    grpc_client: Client, before: int
) -> None:
    count = 0

    async def consume() -> None:
        nonlocal count
        async with aclosing(grpc_client.stream(numbers(5, fail_after=before), call())) as stream:
            async for _ in stream:
                count += 1

    error = await refused(consume())
    assert isinstance(error, EndpointFailed)
    assert (count, error.reason) == (before, "INTERNAL: failed on purpose")


async def test_what_does_not_fit_is_refused_in_a_stream_as_well(grpc_client: Client) -> None:
    assert type(await refused(read(grpc_client, asked("nope", x=floats())))) is UnknownModel
    error = await refused(read(grpc_client, asked("identity", x=floats(9))))
    assert type(error) is InvalidRequest
    assert "batch-size must be <= 8" in error.message


@pytest.mark.parametrize("ending", ["stopped", "cancelled", "late"])
async def test_a_stream_that_nobody_reads_any_more_stops_the_model(
    grpc_client: Client, triton: Triton, ending: str
) -> None:
    request = numbers(10_000, delay_ms=20)
    if ending == "stopped":
        async with aclosing(grpc_client.stream(request, call())) as stream:
            async for _ in stream:
                break
    elif ending == "cancelled":
        reader = asyncio.ensure_future(read(grpc_client, request))
        await until(lambda: f"{request.content.id} started" in triton.journal("stream"))
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    else:
        assert type(await refused(read(grpc_client, request, 0.5))) is EndpointTimeout
    await until(lambda: f"{request.content.id} cancelled" in triton.journal("stream"))


# ---- a server that is gone, frozen, and back


@pytest.mark.parametrize("wire", WIRES)
async def test_a_killed_server_fails_what_it_had_and_is_found_again(
    wire: str, tmp_path: Path
) -> None:
    with running(tmp_path, models=["identity", "slow", "stream"]) as server:
        async with connected(wire, server) as client:
            request = asked("slow", ms=milliseconds(20_000))
            under_way: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: client.infer(request, call(30.0))
            ]
            if wire == "grpc":
                under_way.append(lambda: read(client, numbers(10_000, delay_ms=20), 30.0))
            attempts = [asyncio.ensure_future(refused(work())) for work in under_way]
            await until(lambda: f"{request.content.id} started" in server.journal("slow"))
            if wire == "grpc":
                await until(lambda: server.journal("stream"))
            server.kill()
            assert all(isinstance(each, EndpointFailed) for each in await asyncio.gather(*attempts))
            error = await refused(client.infer(asked("identity", x=floats()), call()))
            assert isinstance(error, EndpointFailed)
            assert not error.sent
            await asyncio.to_thread(server.start)

            async def answers() -> bool:
                with contextlib.suppress(EndpointFailed):
                    await client.infer(asked("identity", x=floats()), call())
                    return True
                return False

            await until(answers)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_frozen_server_is_given_up_at_the_deadline_and_answers_afterwards(
    wire: str, tmp_path: Path
) -> None:
    with running(tmp_path, models=["identity"]) as server:
        async with connected(wire, server) as client:
            request = asked("identity", x=floats())
            await client.infer(request, call())
            server.freeze()
            begun = time.monotonic()
            error = await refused(client.infer(request, call(0.5)))
            assert type(error) is EndpointTimeout
            assert time.monotonic() - begun < 1.5
            error = await refused(models(client).index(time.monotonic() + 0.3))
            assert type(error) is EndpointTimeout
            server.thaw()
            assert outputs(await client.infer(request, call())) == {"y": [[0.0, 1.0]]}


# ---- certificates


async def test_grpc_shows_and_checks_certificates(tmp_path: Path) -> None:
    files = authority(tmp_path)
    secured = (
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={files.server_file}",
        f"--grpc-server-key={files.server_file}",
        f"--grpc-root-cert={files.ca_file}",
    )
    folder = tmp_path / "triton"
    with running(folder, models=["identity", "stream"], arguments=secured) as server:
        ca, own = files.ca_file.read_bytes(), files.client_file.read_bytes()
        for host, credentials, answered in (
            ("localhost", channel_credentials(ca, own, own), True),
            ("localhost", channel_credentials(ca, None, None), False),
            ("localhost", channel_credentials(None, own, own), False),
            ("another.test", channel_credentials(ca, own, own), False),
        ):
            client = GrpcUpstream(
                ENDPOINT,
                Site(host, server.grpc_port, ADDRESS, secure=True),
                settings=GrpcClientSettings(),
                clock=time.monotonic,
                credentials=credentials,
            )
            request = asked("identity", x=floats())
            if answered:
                assert outputs(await client.infer(request, call())) == {"y": [[0.0, 1.0]]}
                assert len(await read(client, numbers(3))) == 3 + 1
            else:
                error = await refused(client.infer(request, call(5.0)))
                assert isinstance(error, EndpointFailed)
                assert not error.sent
            await client.close()
