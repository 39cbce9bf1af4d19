from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import HeadraceError, InvalidRequest, QueueFull, Unauthenticated
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.oip_grpc.edge import PUBLIC, Edge, Exchange
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest
from headrace.transport.status import GrpcStatus

PATH = "/inference.GRPCInferenceService/ModelInfer"
PROBE = "/grpc.health.v1.Health/Check"
RECEIVED = 100.0


class House:
    """An edge around one RPC that does as it is told, and a clock that stands still."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.now = RECEIVED
        self.exchange: Exchange | None = None
        self.log = io.StringIO()
        self.access_log = AccessLog(
            LogSettings(access="all", format="json"), stream=self.log, clock=lambda: 1e9
        )
        self.edge = Edge(
            {PATH: self.rpc, PROBE: self.rpc},
            authenticate=self.authenticate,
            ids=RequestIds(rng=random.Random(1)),
            access_log=self.access_log,
            clock=lambda: self.now,
        )

    async def rpc(self, exchange: Exchange) -> bytes:
        self.exchange = exchange
        exchange.model, exchange.version, exchange.trace_id = "bert", "3", "ab" * 16
        if self.error is not None:
            raise self.error
        return b"answer"

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Principal:
        if headers.get(b"authorization") == b"wrong":
            msg = "this request needs a valid token"
            raise Unauthenticated(msg)
        return Principal("tester")

    async def ask(
        self, path: str = PATH, *, timeout_s: float = math.inf, **headers: str
    ) -> GrpcAnswer:
        named = {name.replace("_", "-").encode(): v.encode() for name, v in headers.items()}
        return await self.edge.handlers[path](GrpcRequest(named, b"request", timeout_s))

    def lines(self) -> list[dict[str, Any]]:
        self.access_log.flush()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


async def test_an_answer_goes_out_with_its_request_id() -> None:
    answer = await House().ask(x_request_id="mine-1")
    assert answer == GrpcAnswer(b"answer", trailers=(("x-request-id", "mine-1"),))


async def test_the_rpc_learns_who_asks_and_until_when() -> None:
    house = House()
    await house.ask(timeout_s=2.5)
    assert house.exchange is not None
    assert house.exchange.principal == Principal("tester")
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
        trailers=(("x-request-id", "mine-1"),),
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
    assert PROBE in PUBLIC
    assert (await house.ask(PROBE, authorization="wrong")).message == b"answer"
    assert house.exchange is not None
    assert house.exchange.principal == ANONYMOUS
    assert house.lines() == []


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
    ("waited_s", "status", "code"), [(1, 499, None), (5, 504, "deadline_exceeded")]
)
async def test_the_access_log_tells_a_cancelled_request_from_a_late_one(
    waited_s: float, status: int, code: str | None
) -> None:
    house = House(asyncio.CancelledError())
    rpc = house.ask(timeout_s=5)
    house.edge._clock = iter([RECEIVED, RECEIVED + waited_s, RECEIVED + waited_s]).__next__  # noqa: SLF001 - a clock that goes
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
