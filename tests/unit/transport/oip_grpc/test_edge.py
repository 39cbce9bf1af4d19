from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from headrace.domain.calls import UNKNOWN, Principal
from headrace.domain.errors import HeadraceError, InvalidRequest, QueueFull, Unauthenticated
from headrace.domain.scopes import EVERYTHING, grants
from headrace.domain.standing import Standing
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import PUBLIC, READ, RUN_MODEL
from headrace.transport.client_address import ClientAddress
from headrace.transport.oip_grpc.edge import Edge, Exchange, Rpc
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest
from headrace.transport.status import GrpcStatus

PATH = "/inference.GRPCInferenceService/ModelInfer"
CONTROL = "/inference.GRPCInferenceService/RepositoryIndex"
PROBE = "/grpc.health.v1.Health/Check"
PEER = "10.0.0.1"
STANDING = Standing("usual", 10, 60, 9, 6.0, 10)
RECEIVED = 100.0


class House:
    """An edge around one RPC that does as it is told, and a clock that stands still."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.now = RECEIVED
        self.exchange: Exchange | None = None
        self.target = ""
        self.metrics = Metrics(version="test")
        self.spent: list[str] = []
        self.addresses: list[str] = []
        self.grants = EVERYTHING
        self.log = io.StringIO()
        self.access_log = AccessLog(
            LogSettings(access="all", format="json"), stream=self.log, clock=lambda: 1e9
        )
        self.edge = Edge(
            {
                PATH: Rpc(self.rpc, RUN_MODEL, by_gateway=True),
                CONTROL: Rpc(self.rpc, READ),
                PROBE: Rpc(self.rpc, PUBLIC),
            },
            addresses=ClientAddress(["10.0.0.0/8"]),
            authenticate=self.authenticate,
            spend=self.spend,
            api_requests=ApiRequests(self.metrics),
            ids=RequestIds(rng=random.Random(1)),
            access_log=self.access_log,
            clock=lambda: self.now,
        )

    async def rpc(self, exchange: Exchange) -> bytes:
        self.exchange = exchange
        exchange.model, exchange.version, exchange.trace_id = "bert", "3", "ab" * 16
        if self.error is not None:
            raise self.error
        exchange.run_s = 0.25
        exchange.target = self.target
        return b"answer"

    async def spend(self, principal: Principal, address: str) -> Sequence[Standing]:
        self.spent.append(f"{principal.name} {address}")
        return [STANDING]

    def authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Principal:
        self.addresses.append(address)
        if headers.get(b"authorization") == b"wrong":
            msg = "this request needs a valid token"
            raise Unauthenticated(msg)
        return Principal("tester", grants=self.grants)

    async def ask(
        self, path: str = PATH, *, timeout_s: float = math.inf, **headers: str
    ) -> GrpcAnswer:
        named = {name.replace("_", "-").encode(): v.encode() for name, v in headers.items()}
        request = GrpcRequest(named, b"request", timeout_s, PEER)
        return await self.edge.handlers[path](request)

    def lines(self) -> list[dict[str, Any]]:
        self.access_log.flush()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


async def test_an_answer_goes_out_with_its_request_id() -> None:
    answer = await House().ask(x_request_id="mine-1")
    assert answer.message == b"answer"
    assert answer.trailers[0] == ("x-request-id", "mine-1")


async def test_an_answer_tells_how_its_time_was_spent() -> None:
    house = House()
    answer = await house.ask()
    assert dict(answer.trailers)["server-timing"] == "model;dur=250.000, platform;dur=0.000"


async def test_the_answer_of_a_route_names_its_target_and_no_other_answer_does() -> None:
    house = House()
    assert "x-headrace-target" not in dict((await house.ask()).trailers)
    house.target = "canary"
    assert dict((await house.ask()).trailers)["x-headrace-target"] == "canary"


async def test_the_rpc_learns_who_asks_and_until_when() -> None:
    house = House()
    await house.ask(timeout_s=2.5)
    assert house.exchange is not None
    assert house.exchange.principal.name == "tester"
    assert (house.exchange.received, house.exchange.deadline) == (100.0, 102.5)
    assert house.exchange.request_id


async def test_without_a_timeout_there_is_no_deadline() -> None:
    house = House()
    await house.ask()
    assert house.exchange is not None
    assert house.exchange.deadline == math.inf


async def test_a_deadline_that_has_passed_is_handed_on_as_it_is() -> None:
    house = House()
    await house.ask(timeout_s=0)
    assert house.exchange is not None
    assert house.exchange.deadline == house.exchange.received


async def test_an_error_is_answered_by_its_status_and_sentence() -> None:
    answer = await House(InvalidRequest("x is not y")).ask(x_request_id="mine-1")
    assert answer == GrpcAnswer(
        status=GrpcStatus.INVALID_ARGUMENT,
        details="x is not y",
        trailers=(("x-request-id", "mine-1"), ("x-error-code", "invalid_request")),
    )


async def test_a_hint_when_to_try_again_is_in_milliseconds() -> None:
    answer = await House(QueueFull("the queue is full", retry_after_s=0.25)).ask()
    assert answer.status is GrpcStatus.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "250") in answer.trailers


async def test_who_is_not_known_gets_no_further() -> None:
    house = House()
    answer = await house.ask(authorization="wrong")
    assert answer.status is GrpcStatus.UNAUTHENTICATED
    assert house.exchange is None


async def test_probes_are_answered_to_everybody_and_not_logged() -> None:
    house = House()
    assert (await house.ask(PROBE, authorization="wrong")).message == b"answer"
    assert house.exchange is not None
    assert house.exchange.principal == UNKNOWN
    assert house.lines() == []
    assert b"headrace_api_requests_total{" not in house.metrics.render()[0]


async def test_who_lacks_the_scope_gets_no_further() -> None:
    house = House()
    house.grants = grants(["infer"])
    answer = await house.ask(CONTROL)
    assert answer.status is GrpcStatus.PERMISSION_DENIED
    assert "models:read" in answer.details
    assert house.exchange is None


async def test_what_asks_for_no_inference_is_counted_here_and_inference_by_the_gateway() -> None:
    house = House()
    answer = await house.ask(CONTROL)
    assert dict(answer.trailers)["ratelimit"] == '"usual";r=9;t=6'
    await house.ask()
    assert house.spent == [f"tester {PEER}"]


async def test_an_error_tells_how_its_caller_stands_too() -> None:
    answer = await House(InvalidRequest("x is not y")).ask(CONTROL)
    assert dict(answer.trailers)["x-ratelimit-remaining"] == "9"


async def test_the_caller_is_whom_a_trusted_proxy_names() -> None:
    house = House()
    await house.ask()
    await house.ask(x_forwarded_for="203.0.113.7")
    assert house.addresses == [PEER, "203.0.113.7"]


async def test_requests_are_counted_by_method_class_of_caller_and_outcome() -> None:
    house = House()
    await house.ask()
    await house.ask(authorization="wrong")
    text = house.metrics.render()[0].decode()
    for caller, outcome in (("token", "ok"), ("anonymous", "unauthenticated")):
        labels = f'caller="{caller}",outcome="{outcome}",route="{PATH}"'
        assert f"headrace_api_requests_total{{{labels}}} 1.0" in text


async def test_a_request_leaves_its_line_in_the_access_log() -> None:
    house = House()
    await house.ask(x_request_id="mine-1")
    (line,) = house.lines()
    assert {
        "method": "GRPC", "route": PATH, "status": 200, "request_id": "mine-1",
        "bytes_in": 7, "bytes_out": 6, "model": "bert", "version": "3", "principal": "tester",
        "trace_id": "ab" * 16,
    }.items() <= line.items()  # fmt: skip
    assert "code" not in line


async def test_an_error_leaves_its_code_and_the_http_status_in_the_access_log() -> None:
    house = House(QueueFull("the queue is full"))
    await house.ask()
    (line,) = house.lines()
    assert (line["status"], line["code"], line["bytes_out"]) == (503, "queue_full", 0)


@pytest.mark.parametrize(
    ("waited_s", "status", "code"), [(1, 499, "cancelled"), (5, 504, "deadline_exceeded")]
)
async def test_the_access_log_tells_a_cancelled_request_from_a_late_one(
    waited_s: float, status: int, code: str | None
) -> None:
    house = House(asyncio.CancelledError())
    rpc = house.ask(timeout_s=5)
    # a clock that goes
    house.edge.clock = iter([RECEIVED, RECEIVED + waited_s, RECEIVED + waited_s]).__next__
    with pytest.raises(asyncio.CancelledError):
        await rpc
    (line,) = house.lines()
    assert (line["status"], line.get("code")) == (status, code)


async def test_a_defect_is_logged_with_its_traceback_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(ZeroDivisionError("secret"))
    with caplog.at_level(logging.ERROR):
        answer = await house.ask()
    assert (answer.status, answer.details) == (GrpcStatus.INTERNAL, "internal error")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    (line,) = house.lines()
    assert (line["status"], line["code"]) == (500, HeadraceError.code)
