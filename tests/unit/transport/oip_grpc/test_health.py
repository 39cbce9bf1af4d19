from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.domain.errors import InvalidRequest, UnknownModel
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.client_address import ClientAddress
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Edge, Exchange
from headrace.transport.oip_grpc.health import MAX_WATCHERS, HealthRpc
from headrace.transport.oip_grpc.messages import GrpcRequest, GrpcStream
from headrace.transport.status import GrpcStatus
from tests.support.waiting import until


async def check(message: bytes, *, ready: bool = True) -> str:
    health = HealthRpc(ready=lambda: ready)
    answer = await health.check(Exchange(GrpcRequest({}, message), "mine-1", 0.0, 1.0))
    status = schema.HealthCheckResponse.FromString(answer).status
    return str(schema.HealthCheckResponse.ServingStatus.Name(status))


def asked(service: str) -> bytes:
    return bytes(schema.HealthCheckRequest(service=service).SerializeToString())


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
async def test_a_service_is_serving_while_the_platform_is_ready(service: str) -> None:
    assert await check(asked(service)) == "SERVING"
    assert await check(asked(service), ready=False) == "NOT_SERVING"


async def test_a_service_that_is_not_here_is_not_found() -> None:
    with pytest.raises(UnknownModel, match="'bert' is not known here"):
        await check(asked("bert"))


async def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"well-formed grpc\.health\.v1"):
        await check(b"\xff")


class Watch:
    """One watcher of a platform, and what it was told."""

    def __init__(self, health: HealthRpc, *messages: bytes) -> None:
        self.told: list[str] = []
        self.stream = GrpcStream({}, self._sent(messages), self._receive)
        edge = Edge(
            health.rpcs(),
            addresses=ClientAddress([]),
            authenticate=self._nobody,
            spend=self._nobody,
            ids=RequestIds(),
            access_log=AccessLog(LogSettings(), stream=io.StringIO(), clock=time.time),
            api_requests=ApiRequests(Metrics(version="test")),
            clock=time.monotonic,
        )
        self.task = asyncio.ensure_future(edge.streams["/grpc.health.v1.Health/Watch"](self.stream))

    def _nobody(self, *_: Any) -> Any:
        raise AssertionError

    async def _sent(self, messages: tuple[bytes, ...]) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async def _receive(self, message: bytes) -> None:
        status = schema.HealthCheckResponse.FromString(message).status
        self.told.append(schema.HealthCheckResponse.ServingStatus.Name(status))

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
async def test_a_watcher_is_told_at_once_and_of_each_change(service: str) -> None:
    ready = True
    watch = Watch(HealthRpc(ready=lambda: ready, poll_s=0), asked(service))
    await until(lambda: watch.told == ["SERVING"])
    ready = False
    await until(lambda: watch.told == ["SERVING", "NOT_SERVING"])
    ready = True
    await until(lambda: watch.told == ["SERVING", "NOT_SERVING", "SERVING"])
    await watch.cancel()


async def test_nobody_looks_at_readiness_when_the_watcher_has_gone() -> None:
    looks: list[bool] = []

    def ready() -> bool:
        looks.append(True)
        return True

    watch = Watch(HealthRpc(ready=ready, poll_s=0), asked(""))
    await until(lambda: len(looks) > 3)
    await watch.cancel()
    seen = len(looks)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(looks) == seen


async def test_a_watcher_of_a_service_that_is_not_here_waits_for_it() -> None:
    watch = Watch(HealthRpc(ready=lambda: True, poll_s=0), asked("bert"))
    await until(lambda: watch.told == ["SERVICE_UNKNOWN"])
    assert not watch.task.done()
    await watch.cancel()


@pytest.mark.parametrize("messages", [(), (b"\xff",)])
async def test_a_watch_without_a_question_is_refused(messages: tuple[bytes, ...]) -> None:
    answer = await Watch(HealthRpc(ready=lambda: True), *messages).task
    assert answer.status is GrpcStatus.INVALID_ARGUMENT


async def test_watchers_are_bounded_and_each_that_goes_makes_room() -> None:
    health = HealthRpc(ready=lambda: True)
    watches = [Watch(health, asked("")) for _ in range(MAX_WATCHERS)]
    await until(lambda: all(watch.told for watch in watches))
    answer = await Watch(health, asked("")).task
    assert answer.status is GrpcStatus.UNAVAILABLE
    await watches[0].cancel()
    another = Watch(health, asked(""))
    await until(lambda: another.told)
    for watch in (*watches[1:], another):
        await watch.cancel()
