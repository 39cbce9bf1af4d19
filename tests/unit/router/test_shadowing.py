from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import Target
from headrace.domain.errors import EndpointFailed
from headrace.domain.inference import Answered as Decoded
from headrace.domain.inference import InferRequest, InferResponse, Reply
from headrace.domain.tensors import InferContent, Tensor
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.shadowing import Answered, Shadowing
from headrace.telemetry.metrics import Metrics
from tests.support.router_fakes import Clock, turns

CANARY = Target(model="canary")
CALL = Call("id", Principal("p", "blue"), received=990.0, deadline=1000.5)


def outputs(value: float) -> list[Tensor]:
    return [Tensor("y", "FP32", np.array([value], np.float32))]


class Encoded:
    """An answer that nobody has decoded yet."""

    def __init__(self, value: float) -> None:
        self._value = value

    size_bytes = 4

    def decode(self) -> Decoded:
        return Decoded(outputs(self._value), "", {})


class House:
    """Shadows that answer `theirs`, or end in it."""

    def __init__(self, theirs: float | BaseException | asyncio.Future[float]) -> None:
        self.theirs = theirs
        self.clock = Clock()
        self.metrics = Metrics(version="1")
        self.asked: list[Call] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.shadowing = Shadowing(
            most=2,
            most_bytes=100,
            timeout_s=3,
            metrics=EndpointMetrics(self.metrics, clock=self.clock),
            spawn=self._spawn,
            clock=self.clock,
        )

    async def copy(self, ours: Reply | list[Tensor], times: int = 1, *, floats: int = 0) -> None:
        inputs = [Tensor("x", "FP32", np.zeros(floats, np.float32))]
        for _ in range(times):
            request = InferRequest("r", decoded=InferContent(inputs))
            self.shadowing.copy(Answered("r", request, CALL, ours, self._ask), [CANARY])
        await turns()

    def outcomes(self) -> dict[str, float]:
        found = {}
        for line in self.metrics.render()[0].decode().splitlines():
            if line.startswith("headrace_shadow_requests_total{"):
                labels, _, count = line.partition("} ")
                assert 'route="r",target="canary",tenant="blue"' in labels
                found[labels.partition('outcome="')[2].partition('"')[0]] = float(count)
        return found

    async def _ask(self, target: Target, request: InferRequest, call: Call) -> InferResponse:
        assert target is CANARY
        self.asked.append(call)
        theirs = self.theirs
        if isinstance(theirs, BaseException):
            raise theirs
        if isinstance(theirs, asyncio.Future):
            theirs = await theirs
        return InferResponse(request.model, "1", outputs(theirs))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]


@pytest.mark.parametrize("ours", [outputs(1.0), Encoded(1.0)], ids=["decoded", "as it came"])
async def test_answers_are_compared_by_what_they_hold(ours: Reply | list[Tensor]) -> None:
    house = House(1.0)
    await house.copy(ours)
    house.theirs = 2.0
    await house.copy(ours)
    assert house.outcomes() == {"agreed": 1, "differed": 1}


async def test_a_shadows_time_is_its_own_and_it_gives_way() -> None:
    house = House(1.0)
    await house.copy(outputs(1.0))
    (call,) = house.asked
    assert (call.received, call.deadline) == (1000.0, 1003.0)
    assert call.batch
    assert call.principal == CALL.principal


async def test_a_shadow_that_fails_is_counted_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(EndpointFailed("broke off"))
    await house.copy(outputs(1.0))
    house.theirs = ZeroDivisionError("a defect")
    await house.copy(outputs(1.0))
    assert house.outcomes() == {"endpoint_failed": 1, "internal": 1}
    assert [task.exception() for task in house.tasks] == [None, None]
    (record,) = caplog.records
    assert record.exc_info is not None


async def test_no_more_are_under_way_than_may_be_and_the_room_comes_back() -> None:
    held: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    house = House(held)
    await house.copy(outputs(1.0), times=3)
    assert (len(house.asked), house.outcomes()) == (2, {"dropped": 1})
    held.set_result(1.0)
    await turns()
    await house.copy(outputs(1.0))
    assert house.outcomes() == {"dropped": 1, "agreed": 3}


async def test_a_shadow_that_is_cancelled_leaves_its_room_to_others() -> None:
    house = House(asyncio.get_running_loop().create_future())
    await house.copy(outputs(1.0), times=2)
    for task in house.tasks:
        task.cancel()
    await asyncio.wait(house.tasks)
    house.theirs = 1.0
    await house.copy(outputs(1.0))
    assert house.outcomes()["agreed"] == 1


async def test_copies_that_would_hold_too_much_memory_are_dropped() -> None:
    theirs = asyncio.get_running_loop().create_future()
    house = House(theirs)
    await house.copy(outputs(1.0), floats=20)  # 84 bytes
    await house.copy(outputs(1.0), floats=20)
    assert house.outcomes() == {"dropped": 1}
    theirs.set_result(1.0)
    await turns()
    await house.copy(outputs(1.0), floats=20)
    assert house.outcomes() == {"dropped": 1, "agreed": 2}, "what has ended holds nothing"
