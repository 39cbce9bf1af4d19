from __future__ import annotations

import gc
import gzip
import math
import weakref
import zlib
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from headrace.domain.calls import Call, TraceContext
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    Unsupported,
    UnsupportedMediaType,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent, Tensor
from headrace.ports.upstream import Site, Upstream
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.upstream import RestUpstream

_AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(tenant="t", name="triton-a", url="", created_at=_AT, updated_at=_AT)
GOOD = b'{"model_name":"m","model_version":"7","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1]}]}'  # noqa: E501
BODY = b'{"inputs": []}'


class Prepared(ClientPool):
    """Answers what it was told, and notes what it was asked."""

    def __init__(
        self, site: Site, outcome: Answer | HeadraceError, limits: ClientLimits | None = None
    ) -> None:
        super().__init__(site, limits=limits or ClientLimits())
        self.outcome = outcome
        self.coded = False  # of the last request
        self.may_repeat: Callable[[], bool] | None = None  # of the last request
        self.heads: list[bytes] = []
        self.bodies: list[Sequence[bytes | memoryview]] = []

    async def exchange(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        deadline: float,
        *,
        may_repeat: Callable[[], bool] | None = None,
        coded: bool = False,
        max_body_bytes: int | None = None,
    ) -> Answer:
        del deadline, max_body_bytes
        self.may_repeat = may_repeat
        self.coded = coded
        self.heads.append(head)
        self.bodies.append(body)
        if isinstance(self.outcome, HeadraceError):
            raise self.outcome
        return self.outcome


def answer(status: int = 200, body: bytes = GOOD, **headers: str) -> Answer:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Answer(status, named, [body])


def upstream(
    outcome: Answer | HeadraceError,
    *,
    host: str = "triton",
    port: int = 8000,
    path: str = "",
    limits: ClientLimits | None = None,
) -> tuple[Upstream, Prepared]:
    site = Site(host, port, ip_address("192.0.2.1"), path)
    pool = Prepared(site, outcome, limits)
    made = RestUpstream(
        ENDPOINT, site, pool=pool, clock=lambda: 100.0, wall_clock=lambda: 1_800_000_000.0
    )
    return made, pool


def request(body: bytes = BODY, length: int | None = None, **changes: Any) -> InferRequest:
    return InferRequest("m", payload=RestPayload(body, length), **changes)


async def infer(
    outcome: Answer | HeadraceError, asked: InferRequest | None = None, call: Call | None = None
) -> tuple[InferResponse, Prepared]:
    made, pool = upstream(outcome)
    return await made.infer(asked or request(), call or Call("id-1")), pool


async def refusal(outcome: Answer | HeadraceError) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await infer(outcome)
    return caught.value


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head.decode().split("\r\n")[:-2]


async def test_a_request_goes_out_as_it_came() -> None:
    trace = TraceContext("00-" + "1" * 32 + "-" + "2" * 16 + "-01", "a=b")
    call = Call("id-1", trace=trace)
    asked = request(BODY, None, version="3")
    response, pool = await infer(answer(), asked, call)
    assert lines(pool.heads[0]) == [
        "POST /v2/models/m/versions/3/infer HTTP/1.1",
        "host: triton:8000",
        "user-agent: headrace",
        "content-type: application/json",
        f"content-length: {len(BODY)}",
        "x-request-id: id-1",
        f"traceparent: {trace.traceparent}",
        "tracestate: a=b",
        "x-headrace-hops: 1",
    ]
    assert [part is BODY for part in pool.bodies[0]] == [True]
    assert (response.model, response.version) == ("m", "7")


async def test_the_time_that_is_left_goes_along_unless_that_is_set_otherwise() -> None:
    call = Call("id-1", deadline=101.5)
    for limits, told in ((None, {"timeout": 1_500_000}), (ClientLimits(send_timeout=False), None)):
        made, pool = upstream(answer(), limits=limits)
        await made.infer(request(BODY), call)
        assert "request-timeout: 1.500" in lines(pool.heads[0])
        body = b"".join(pool.bodies[0])
        assert f"content-length: {len(body)}" in lines(pool.heads[0])
        assert msgspec.json.decode(body).get("parameters") == told
        x = Tensor("x", "UINT8", np.zeros(1, np.uint8))
        content = InferContent([x], parameters={"timeout": 2_000_000})
        await made.infer(InferRequest("m", decoded=content), call)
        sent = msgspec.json.decode(b"".join(pool.bodies[1])[:-1])["parameters"]["timeout"]
        assert sent == (2_000_000 if told is None else 1_500_000)


async def test_of_a_binary_request_with_its_timeout_the_jsons_length_is_told() -> None:
    _, pool = await infer(
        answer(), request(BODY + b"1234", len(BODY)), Call("id-1", deadline=100.5)
    )
    body = b"".join(pool.bodies[0])
    assert f"inference-header-content-length: {len(body) - 4}" in lines(pool.heads[0])
    assert msgspec.json.decode(body[:-4])["parameters"] == {"timeout": 500_000}
    assert body[-4:] == b"1234"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1100, 100_000])
async def test_what_is_not_small_goes_out_and_comes_back_compressed(
    coding: Literal["gzip", "deflate"], size: int
) -> None:
    padded = GOOD + b" " * size
    packed = gzip.compress(padded) if coding == "gzip" else zlib.compress(padded)
    made, pool = upstream(
        answer(body=packed, content_encoding=coding), limits=ClientLimits(compression=coding)
    )
    response = await made.infer(request(BODY + b" " * size), Call("id-1"))
    (head,), (body,) = pool.heads, pool.bodies
    sent = b"".join(body)
    assert len(sent) < size
    unpacked = gzip.decompress(sent) if coding == "gzip" else zlib.decompress(sent)
    assert unpacked == BODY + b" " * size
    assert f"content-encoding: {coding}" in lines(head)
    assert f"content-length: {len(sent)}" in lines(head)
    assert "accept-encoding: gzip, deflate" in lines(head)
    assert pool.coded
    response.unpack()
    assert response.outputs[0].array.tolist() == [1.0]


async def test_what_is_small_is_not_compressed_and_what_comes_so_is_taken() -> None:
    made, pool = upstream(answer(), limits=ClientLimits(compression="gzip"))
    response = await made.infer(request(), Call("id-1"))
    assert not any(line.startswith("content-encoding") for line in lines(pool.heads[0]))
    assert (pool.coded, pool.bodies[0]) == (True, (BODY,))
    assert response.version == "7"


async def test_nothing_is_asked_to_be_compressed_by_default() -> None:
    _, pool = await infer(answer(), request(BODY + b" " * 5000))
    assert not any("encoding" in line for line in lines(pool.heads[0]))
    assert not pool.coded


@pytest.mark.parametrize(
    ("coding", "body", "message"),
    [
        ("gzip", gzip.compress(b" " * 2_000_000), "over the limit of 1000000 bytes"),
        ("gzip", gzip.compress(GOOD)[:-1], "not well-formed"),
        ("gzip", GOOD, "not well-formed"),
        ("br", GOOD, "not well-formed"),
    ],
    ids=["bomb", "cut", "plain", "unknown"],  # what gzip writes holds the time
)
async def test_a_coding_that_cannot_be_undone_is_the_endpoints_failure(
    coding: str, body: bytes, message: str
) -> None:
    limits = ClientLimits(compression="gzip", max_body_bytes=1_000_000)
    made, _ = upstream(answer(body=body, content_encoding=coding), limits=limits)
    with pytest.raises(EndpointFailed, match=message):
        await made.infer(request(), Call("id-1"))


async def test_a_stream_is_the_one_answer() -> None:
    made, _ = upstream(answer())
    async with aclosing(made.stream(request(), Call("id-1"))) as stream:
        (response,) = [each async for each in stream]
    assert (response.version, response.final) == ("7", True)


async def test_a_model_that_streams_is_refused_with_the_way_out() -> None:
    text = "HTTP end point doesn't support models with decoupled transaction policy"
    for said, hinted in ((text, True), ("no sequences", False)):
        made, _ = upstream(answer(501, msgspec.json.encode({"error": said})))
        for asks in (made.infer(request(), Call("id-1")), anext(made.stream(request(), Call("i")))):
            streamed = not hasattr(asks, "cr_frame")
            with pytest.raises(Unsupported) as caught:
                await asks
            assert caught.value.message.startswith(said)
            assert ("gRPC address" in caught.value.message) is (hinted and streamed)


async def test_only_a_request_without_a_sequence_may_be_repeated() -> None:
    for body, may in ((BODY, True), (b'{"inputs":[],"parameters":{"sequence_id":7}}', False)):
        _, pool = await infer(answer(), request(body))
        assert pool.may_repeat is not None
        assert pool.may_repeat() is may


async def test_a_row_of_a_batch_goes_out_once_also_where_its_connection_was_lost() -> None:
    _, pool = await infer(answer(), call=Call("id-1", batch=True))
    assert pool.may_repeat is not None
    assert not pool.may_repeat()


async def test_a_request_that_passed_through_platforms_tells_of_one_more_until_it_is_a_loop() -> (
    None
):
    made, pool = upstream(answer())
    await made.infer(request(), Call("id-1", headers={b"x-headrace-hops": b"7"}))
    assert lines(pool.heads[0])[-1] == "x-headrace-hops: 8"
    with pytest.raises(InvalidRequest, match="an endpoint leads back to one of them"):
        await made.infer(request(), Call("id-1", headers={b"x-headrace-hops": b"8"}))
    assert len(pool.heads) == 1


class Body(bytearray):
    """Bytes that can be referred to weakly."""


@pytest.mark.parametrize(
    "outcome",
    [
        answer(500, b""),
        answer(400, b'{"error": "no"}'),
        answer(200, b"garbage"),
        answer(200, b'{"outputs": []'),
        answer(200, GOOD.replace(b"[1]}", b"[NaN]}")),
    ],
)
async def test_the_body_of_a_request_that_failed_goes_with_its_error(outcome: Answer) -> None:
    made, _ = upstream(outcome)
    body = Body(BODY)
    kept = weakref.ref(body)
    asked = InferRequest("m", payload=RestPayload([memoryview(body)]))
    del body
    gc.disable()
    try:
        with pytest.raises(HeadraceError):
            await made.infer(asked, Call("id-1"))
        del asked, made, _
        assert kept() is None
    finally:
        gc.enable()


async def test_the_length_of_the_json_goes_along_with_binary_tensors() -> None:
    _, pool = await infer(answer(), request(BODY + b"1234", len(BODY)))
    assert f"inference-header-content-length: {len(BODY)}" in lines(pool.heads[0])
    assert "content-type: application/octet-stream" in lines(pool.heads[0])
    with pytest.raises(InvalidRequest, match="has only 14 bytes"):
        await infer(answer(), request(BODY, 15))


@pytest.mark.parametrize(
    ("host", "port", "path", "told"),
    [
        ("triton", 80, "", ["POST /v2/models/m/infer HTTP/1.1", "host: triton"]),
        ("::1", 81, "/a/b", ["POST /a/b/v2/models/m/infer HTTP/1.1", "host: [::1]:81"]),
        ("[::1]", 80, "/ä b", ["POST /%C3%A4%20b/v2/models/m/infer HTTP/1.1", "host: [::1]"]),
    ],
)
async def test_the_address_is_told_as_the_url_names_it(
    host: str, port: int, path: str, told: list[str]
) -> None:
    made, pool = upstream(answer(), host=host, port=port, path=path)
    await made.infer(request(), Call("id-1"))
    assert lines(pool.heads[0])[:2] == told


async def test_names_cannot_leave_their_place_in_the_path() -> None:
    made, pool = upstream(answer())
    await made.infer(InferRequest("a/b c\r\nX: y", "../1?", RestPayload(BODY)), Call("id-1"))
    line = "POST /v2/models/a%2Fb%20c%0D%0AX%3A%20y/versions/..%2F1%3F/infer HTTP/1.1"
    assert lines(pool.heads[0])[0] == line


async def test_a_request_of_another_wire_is_written_with_binary_tensors() -> None:
    tensor = Tensor("x", "FP32", np.array([[1, 2]], dtype=np.float32))
    content = InferContent([tensor], "42", {"priority": 1})
    response, pool = await infer(answer(), InferRequest("m", decoded=content))
    head = lines(pool.heads[0])
    body = b"".join(pool.bodies[0])
    length = next(int(line.split()[1]) for line in head if line.startswith("inference-header"))
    assert msgspec.json.decode(body[:length]) == {
        "id": "42",
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, 2],
                "parameters": {"binary_data_size": 8},
            }
        ],
        "parameters": {"priority": 1, "binary_data_output": True},
    }
    assert body[length:] == tensor.array.tobytes()
    assert f"content-length: {len(body)}" in head
    response.unpack()
    assert response.outputs[0].array.tolist() == [1.0]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (404, UnknownModel),
        (413, PayloadTooLarge),
        (415, UnsupportedMediaType),
        (422, InvalidRequest),
        (431, InvalidRequest),
        (501, Unsupported),
    ],
)
async def test_what_the_endpoint_says_of_the_request_is_handed_on(
    status: int, kind: type[HeadraceError]
) -> None:
    error = await refusal(answer(status, b'{"error": "input \\u0000\'x\'\\nis wrong"}'))
    assert type(error) is kind
    assert error.message == "input  'x' is wrong"
    silent = await refusal(answer(status, b"<html>"))
    assert type(silent) is kind
    assert "<" not in silent.message
    long = await refusal(answer(status, b'{"error": "%b"}' % (b"x" * 5000)))
    assert len(long.message) == 1024


@pytest.mark.parametrize("status", [204, 301, 307, 401, 403, 405, 407, 408, 500, 502, 503, 504])
async def test_what_is_the_endpoints_own_trouble_is_told_to_operators_alone(status: int) -> None:
    error = await refusal(answer(status, b'{"error": "secret"}', location="http://secret"))
    assert type(error) is EndpointFailed
    assert "secret" not in error.message
    assert error.reason == f"'triton-a' answered with status {status}: secret"


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("7", 7.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:59:00 -0000", 0.0),
        ("Fri, 15 Jan 2100 08:00:30 GMT", 86400.0),
        ("soon", None),
        ("-1", None),
        ("9" * 400, None),
    ],
)
async def test_how_long_to_wait_is_read_from_a_refusal(value: str, wait_s: float | None) -> None:
    for status, kind in ((429, EndpointBusy), (503, EndpointFailed)):
        error = await refusal(answer(status, b"", retry_after=value))
        assert (type(error), error.retry_after_s) == (kind, wait_s)


async def test_whether_a_model_or_the_server_is_ready_is_asked() -> None:
    made, pool = upstream(answer(200, b""))
    assert await made.unready("m", "3", 1.0) == ""
    assert await made.unready("m", "", 1.0) == ""
    assert await made.unready("", "", 1.0) == ""
    assert [lines(head)[0] for head in pool.heads] == [
        "GET /v2/models/m/versions/3/ready HTTP/1.1",
        "GET /v2/models/m/ready HTTP/1.1",
        "GET /v2/health/ready HTTP/1.1",
    ]
    pool.outcome = answer(400, b"")
    assert await made.unready("m", "", 1.0)
    pool.outcome = EndpointFailed("gone")
    assert await made.unready("m", "", math.inf)
