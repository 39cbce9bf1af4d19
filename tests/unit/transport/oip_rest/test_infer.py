from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from headrace.domain.calls import ANONYMOUS, Call
from headrace.domain.errors import EndpointFailed
from headrace.domain.inference import Answered, InferRequest, InferResponse, Reply
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.client_address import ClientAddress
from headrace.transport.http.messages import HttpRequest, HttpResponse
from headrace.transport.oip_rest.infer import InferWire
from headrace.transport.oip_rest.reply import RestReply
from headrace.transport.oip_rest.server_settings import RequestTimelines

TARGET = b"/v2/models/m/infer"
ONE = Tensor("y", "FP32", np.array([1.0], dtype=np.float32))
LINES = b"content-type: application/json\r\n"


class Behind:
    """What stands behind the wire, answering as told."""

    def __init__(self, response: InferResponse) -> None:
        self.response = response
        self.request = InferRequest("")
        self.call = Call("")

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.request, self.call = request, call
        return self.response

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class OtherReply:
    """A reply of another form."""

    size_bytes = 0

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def decode(self) -> Answered:
        if self._error is not None:
            raise self._error
        return Answered([ONE], "42")


async def answered(response: InferResponse, body: bytes) -> tuple[HttpResponse, Behind]:
    behind = Behind(response)
    metrics = Metrics()
    wire = InferWire(
        behind,
        max_body_bytes=1000,
        clock=lambda: 0.0,
        addresses=ClientAddress([]),
        authenticate=lambda _headers, _address: ANONYMOUS,
        ids=RequestIds(),
        access_log=AccessLog(LogSettings(), stream=io.StringIO(), clock=lambda: 0.0),
        api_requests=ApiRequests(metrics),
        timelines=RequestTimelines(),
    )
    handler = wire.handler(TARGET)
    assert handler is not None
    return await handler(HttpRequest("POST", TARGET, {b"x-team": b"a"}, body)), behind


def of(reply: Reply, **changes: Any) -> InferResponse:
    return InferResponse("m", "1", [], reply=reply, **changes)


async def test_an_endpoints_reply_is_passed_on_and_the_request_never_decoded() -> None:
    parts = [b'{"outputs"', b": []}"]
    response, behind = await answered(of(RestReply(LINES, parts)), b"not even JSON")
    assert response.status == 200
    assert response.body is parts
    assert response.headers.startswith(LINES)
    assert b"x-headrace-target" not in response.headers
    assert behind.call.headers == {b"x-team": b"a"}


async def test_a_reply_of_another_form_is_written_as_the_client_asked() -> None:
    response, _ = await answered(of(OtherReply()), b'{"inputs": []}')
    assert json.loads(b"".join(response.body)) == {
        "model_name": "m",
        "model_version": "1",
        "id": "42",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}],
    }


async def test_a_reply_in_the_form_the_platform_asked_for_is_written_as_the_client_did() -> None:
    text = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [2]}]}'
    reply = RestReply(LINES, [text], passable=False)
    response, _ = await answered(of(reply), b'{"inputs": []}')
    document = json.loads(b"".join(response.body))
    assert (document["model_version"], document["outputs"][0]["data"]) == ("1", [2.0])


async def test_a_reply_that_cannot_be_decoded_is_the_endpoints_failure() -> None:
    response, _ = await answered(of(OtherReply(EndpointFailed("garbage"))), b'{"inputs": []}')
    assert response.status == 502


async def test_the_target_that_answered_is_named() -> None:
    response, _ = await answered(of(RestReply(LINES, [b"{}"]), target="bert:2"), b"")
    assert b"\r\nx-headrace-target: bert:2\r\n" in response.headers
