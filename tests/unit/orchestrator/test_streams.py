"""Streams of served versions, and of versions that come and go."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    QueueFull,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import ModelConfig, Signature, TensorSpec
from headrace.domain.tensors import Array, InferContent, RequestedOutput, Tensor
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.outlet import UNREAD_LIMIT
from headrace.orchestrator.served_version import ServedVersion
from headrace.ports.executor import Arrays
from headrace.ports.inference import Responses
from headrace.telemetry.metrics import Metrics
from tests.support.executors import FakeExecutor, SteppedExecutor, counting
from tests.support.waiting import until
from tests.unit.orchestrator.stage import START, Clock, House, turns

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 1)),),
    (
        TensorSpec("y", "FP32", (-1, 1)),
        TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "bird")),
    ),
)


def _scored(inputs: Arrays) -> Iterator[Sequence[Array]]:
    """Two answers, of one row and of two."""
    for rows in (1, 2):
        scores = np.tile(np.array([[0.5, 2, 1]], dtype=np.float32), (rows, 1))
        yield [inputs["x"][0] + np.zeros((rows, 1), dtype=np.float32), scores]


def _request(
    value: float, *, outputs: list[RequestedOutput] | None = None, id: str = ""
) -> InferRequest:
    tensor = Tensor("x", "FP32", np.array([[value]], dtype=np.float32))
    return InferRequest("m", decoded=InferContent([tensor], id, {}, outputs))


def _call(**options: Any) -> Call:
    return Call("r", **{"received": START, "deadline": math.inf, **options})


class Version:
    """A served version and its clock."""

    def __init__(self, executor: FakeExecutor, *, queue_limit: int = 100, **config: Any) -> None:
        self.clock = Clock()
        self.served = ServedVersion(
            model="m",
            version="3",
            platform="python",
            config=ModelConfig("m", **config),
            executors=[executor],
            queue_limit=queue_limit,
            loop=self.clock.loop,
            metrics=OrchestratorMetrics(Metrics(version="test")).version("m", "3"),
            clock=self.clock.time,
        )

    def stream(self, value: float, *, outputs: Any = None, id: str = "", **call: Any) -> Responses:
        return self.served.stream(_request(value, outputs=outputs, id=id), _call(**call))

    async def ended(self, executor: SteppedExecutor) -> None:
        """Wait until the model was stopped, on its own thread, and nothing is left of it."""
        executor.allow()
        await until(lambda: executor.ended_by)
        assert executor.ended_by == executor.threads[0]
        (instance,) = self.served.scheduler._instances  # noqa: SLF001
        await until(lambda: instance.run is None)
        assert self.served.scheduler.in_flight == 0
        assert self.clock.armed == []


@asynccontextmanager
async def _nothing_left_behind() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await turns()
    assert asyncio.all_tasks() == before


async def _all(responses: Responses) -> list[InferResponse]:
    async with aclosing(responses):
        return [response async for response in responses]


def _values(responses: Sequence[InferResponse]) -> list[float]:
    return [value for r in responses for value in r.outputs[0].array.ravel().tolist()]


# Answers


async def test_each_answer_is_a_response_that_does_not_say_whether_it_is_the_last() -> None:
    version = Version(FakeExecutor(answers=counting))
    async with _nothing_left_behind():
        responses = await _all(version.stream(2, id="abc"))
    assert [(r.model, r.version, r.id, r.final) for r in responses] == [
        ("m", "3", "abc", False)
    ] * 2
    assert _values(responses) == [0, 1]


async def test_a_stream_may_have_no_answer_at_all() -> None:
    assert await _all(Version(FakeExecutor(answers=counting)).stream(0)) == []


async def test_a_model_that_answers_once_gives_one_final_response() -> None:
    version = Version(FakeExecutor())
    assert not version.served.decoupled
    (response,) = await _all(version.stream(1))
    assert response.final
    assert _values([response]) == [2]


async def test_the_outputs_asked_for_are_those_of_every_answer_as_classes_if_wished() -> None:
    version = Version(FakeExecutor(answers=_scored, signature=SIGNATURE))
    outputs = [RequestedOutput("scores", classes=1), RequestedOutput("y")]
    responses = await _all(version.stream(5, outputs=outputs))
    assert [[t.array.tolist() for t in response.outputs] for response in responses] == [
        [[[b"2.000000:1:dog"]], [[5]]],
        [[[b"2.000000:1:dog"]] * 2, [[5], [5]]],
    ]


async def test_a_decoupled_version_refuses_a_plain_request_before_it_is_queued() -> None:
    executor = FakeExecutor(answers=counting)
    version = Version(executor)
    assert version.served.decoupled
    with pytest.raises(Unsupported) as caught:
        await version.served.infer(_request(1), _call())
    assert caught.value.message == (
        "ModelInfer RPC doesn't support models with decoupled transaction policy"
    )
    assert executor.asked == []
    assert version.served.scheduler.statistics.fail.count == 0


async def test_its_configuration_tells_what_its_code_says() -> None:
    assert Version(FakeExecutor(answers=counting)).served.config.decoupled is True
    assert Version(FakeExecutor()).served.config.decoupled is None
    assert Version(FakeExecutor(), decoupled=False).served.config.decoupled is False


# Refusals


async def test_what_cannot_be_queued_is_refused_with_the_first_step() -> None:
    executor = SteppedExecutor()
    version = Version(executor, queue_limit=1)
    for kind, responses in (
        (DeadlineExceeded, version.stream(1, deadline=START)),
        (InvalidRequest, version.stream(1, outputs=[RequestedOutput("nope")])),
    ):
        with pytest.raises(kind):
            await anext(responses)
    create_task = asyncio.get_running_loop().create_task
    tasks = [create_task(_all(version.stream(1)))]
    await until(executor.begun.is_set)
    tasks.append(create_task(_all(version.stream(2))))
    await turns()
    with pytest.raises(QueueFull):
        await anext(version.stream(3))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await version.ended(executor)


async def test_a_stream_that_nobody_began_to_read_was_never_queued() -> None:
    executor = FakeExecutor(answers=counting)
    version = Version(executor)
    responses = version.stream(1)
    await turns()
    await responses.aclose()
    assert executor.asked == []
    assert version.served.scheduler.in_flight == 0


async def test_a_failure_comes_behind_the_answers_before_it() -> None:
    executor = SteppedExecutor(raises=ModelFailed("broken"), at=2)
    executor.allow(3)
    async with aclosing(Version(executor).stream(1)) as responses:
        assert _values([await anext(responses), await anext(responses)]) == [0, 1]
        with pytest.raises(ModelFailed, match="broken"):
            await anext(responses)


# Ends before the end


async def test_a_reader_that_closes_a_stream_stops_its_model() -> None:
    executor = SteppedExecutor()
    executor.allow()
    version = Version(executor)
    async with _nothing_left_behind():
        responses = version.stream(1, deadline=START + 60)
        await anext(responses)
        await responses.aclose()
        await version.ended(executor)


async def test_a_reader_that_is_cancelled_while_it_waits_stops_its_model() -> None:
    executor = SteppedExecutor()
    version = Version(executor)
    async with _nothing_left_behind():
        task = asyncio.get_running_loop().create_task(_all(version.stream(1)))
        await until(executor.begun.is_set)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await version.ended(executor)


async def test_a_reader_that_is_forgotten_frees_the_thread_that_waits_for_it() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    version = Version(executor)
    responses = version.stream(1)
    await anext(responses)
    await until(lambda: executor.made == 1 + UNREAD_LIMIT)
    del responses
    gc.collect()
    await version.ended(executor)


async def test_a_reader_that_never_comes_back_is_given_up_at_the_deadline() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    version = Version(executor)
    responses = version.stream(1, deadline=START + 5)
    await anext(responses)
    await until(lambda: executor.made == 1 + UNREAD_LIMIT)
    version.clock.advance(5)
    await until(lambda: executor.ended_by)
    with pytest.raises(DeadlineExceeded):
        await anext(responses)
    await version.ended(executor)


async def test_answers_that_are_read_after_the_deadline_are_too_late() -> None:
    version = Version(FakeExecutor(answers=counting))
    responses = version.stream(3, deadline=START + 5)
    await anext(responses)
    (instance,) = version.served.scheduler._instances  # noqa: SLF001
    await until(lambda: instance.run is None)  # all were made in time
    version.clock.advance(5)
    with pytest.raises(DeadlineExceeded, match="before all answers were read"):
        await anext(responses)
    assert version.served.scheduler.in_flight == 0


# Versions that come and go


async def _loaded(*executors: FakeExecutor, drain_s: float = 30.0) -> House:
    house = House(drain_s=drain_s)
    house.repository.put("m")
    for executor in executors:
        house.loader.will("m", "1", [executor])
    await house.models.load_all()
    return house


def _stream(house: House, value: float) -> Responses:
    now = asyncio.get_running_loop().time()
    call = Call("r", received=now, deadline=now + 60)
    return house.models.get("m").stream(_request(value), call)


async def test_unloading_waits_for_a_stream() -> None:
    executor = SteppedExecutor()
    house = await _loaded(executor)
    async with aclosing(_stream(house, 1)) as responses:
        executor.allow()
        assert _values([await anext(responses)]) == [0]
        unloading = asyncio.get_running_loop().create_task(house.models.unload("m"))
        await turns()
        executor.allow()
        assert _values([await anext(responses)]) == [1]
        assert not unloading.done()
    executor.allow()
    await unloading
    await executor.ended()


async def test_unloading_ends_a_stream_that_lasts_longer_than_the_drain_time() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    house = await _loaded(executor, drain_s=0.05)
    responses = _stream(house, 1)
    await anext(responses)
    await house.models.unload("m")
    await executor.ended()
    assert executor.ended_by == executor.threads[0]
    with pytest.raises(ModelNotReady, match="unloaded"):
        await anext(responses)


async def test_a_stream_that_is_begun_after_the_unloading_is_refused() -> None:
    house = await _loaded(FakeExecutor(answers=counting))
    responses = _stream(house, 1)
    await house.models.unload("m")
    with pytest.raises(ModelNotReady, match="unloaded"):
        await anext(responses)


async def test_a_stream_goes_on_while_its_version_is_replaced() -> None:
    old, new = SteppedExecutor(), FakeExecutor(answers=counting)
    house = await _loaded(old, new)
    async with aclosing(_stream(house, 1)) as responses:
        old.allow()
        assert _values([await anext(responses)]) == [0]
        await house.models.load("m")
        assert _values(await _all(_stream(house, 2))) == [0, 1]
        old.allow()
        assert _values([await anext(responses)]) == [1]
        assert old.closed == 0
    old.allow()
    await old.ended()
    await house.models.close()
