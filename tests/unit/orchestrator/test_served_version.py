from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    QueueFull,
    QueueTimeout,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import Batching, ModelConfig, QueuePolicy, Signature, TensorSpec
from headrace.domain.tensors import Array, InferContent, RequestedOutput, Tensor
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.served_version import ServedVersion, asked_timeout_us
from headrace.ports.executor import Arrays
from headrace.telemetry.metrics import Metrics
from tests.support.executors import FakeExecutor, GatedExecutor, failing
from tests.unit.orchestrator.stage import START, Clock, turns

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 1)),),
    (
        TensorSpec("y", "FP32", (-1, 1)),
        TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "bird")),
    ),
)


def _answer(inputs: Arrays) -> Sequence[Array]:
    rows = inputs["x"].shape[0]
    return [inputs["x"] + 1, np.tile(np.array([[0.5, 2, 1]], dtype=np.float32), (rows, 1))]


class House:
    """A served version and its clock."""

    def __init__(
        self, executor: FakeExecutor | None = None, *, queue_limit: int = 100, **config: Any
    ) -> None:
        self.clock = Clock()
        self.executor = executor or FakeExecutor(_answer, signature=SIGNATURE)
        self.version = ServedVersion(
            model="m",
            version="3",
            platform="python",
            config=ModelConfig("m", **config),
            executors=[self.executor],
            queue_limit=queue_limit,
            loop=self.clock.loop,
            metrics=OrchestratorMetrics(Metrics(version="test")).version("m", "3"),
            clock=self.clock.time,
        )

    async def infer(
        self,
        *values: float,
        outputs: list[RequestedOutput] | None = None,
        parameters: dict[str, Any] | None = None,
        received: float = START,
        deadline: float = math.inf,
        priority: int = 0,
        id: str = "",
        batch: bool = False,
    ) -> InferResponse:
        tensor = Tensor("x", "FP32", np.array([[v] for v in values], dtype=np.float32))
        content = InferContent([tensor], id, parameters or {}, outputs)
        call = Call("r", received=received, deadline=deadline, priority=priority, batch=batch)
        return await self.version.infer(InferRequest("m", decoded=content), call)

    def send(self, *values: float, **options: Any) -> asyncio.Task[InferResponse]:
        return asyncio.get_running_loop().create_task(self.infer(*values, **options))


def _plain(response: InferResponse) -> dict[str, tuple[str, Any]]:
    return {t.name: (t.datatype, t.array.tolist()) for t in response.outputs}


# Answers


async def test_an_answer_names_its_model_its_version_the_request_and_all_outputs() -> None:
    response = await House().infer(1, 2, id="abc")
    assert (response.model, response.version, response.id) == ("m", "3", "abc")
    assert _plain(response) == {
        "y": ("FP32", [[2], [3]]),
        "scores": ("FP32", [[0.5, 2, 1], [0.5, 2, 1]]),
    }


async def test_only_the_outputs_asked_for_are_answered_in_the_order_asked() -> None:
    house = House()
    response = await house.infer(1, outputs=[RequestedOutput("scores"), RequestedOutput("y")])
    assert [tensor.name for tensor in response.outputs] == ["scores", "y"]
    response = await house.infer(1, outputs=[RequestedOutput("y")])
    assert [tensor.name for tensor in response.outputs] == ["y"]
    response = await house.infer(1, outputs=[])
    assert response.outputs == []


async def test_an_output_can_be_asked_for_as_its_highest_classes() -> None:
    asked = [RequestedOutput("scores", classes=2), RequestedOutput("y")]
    response = await House().infer(1, 2, outputs=asked)
    classes = [b"2.000000:1:dog", b"1.000000:2:bird"]
    assert _plain(response) == {"scores": ("BYTES", [classes, classes]), "y": ("FP32", [[2], [3]])}


async def test_the_classes_of_a_model_without_a_batch_axis_have_no_rows() -> None:
    house = House(FakeExecutor(_answer, signature=SIGNATURE, max_batch_size=0))
    response = await house.infer(1, outputs=[RequestedOutput("scores", classes=1)])
    assert _plain(response) == {"scores": ("BYTES", [b"2.000000:1:dog"])}


async def test_a_request_that_does_not_fit_is_refused_before_the_queue() -> None:
    house = House()
    with pytest.raises(InvalidRequest, match="'z' for model 'm'"):
        await house.infer(1, outputs=[RequestedOutput("z")])
    with pytest.raises(InvalidRequest, match="batch-size must be <= 8"):
        await house.infer(*range(9))
    assert house.executor.asked == []
    assert house.version.scheduler.in_flight == 0


async def test_a_failing_model_fails_its_request() -> None:
    house = House(FakeExecutor(failing(ModelFailed("no"))))
    with pytest.raises(ModelFailed, match="no"):
        await house.infer(1)


async def test_a_model_without_a_batch_axis_runs_one_request_at_a_time() -> None:
    house = House(FakeExecutor(_answer, signature=SIGNATURE, max_batch_size=0))
    await asyncio.gather(*[house.infer(i) for i in range(3)])
    assert house.executor.values == [[0], [1], [2]]


# Deadlines


async def test_a_request_whose_deadline_has_passed_is_not_queued() -> None:
    house = House()
    for deadline in (START, START - 5):
        with pytest.raises(DeadlineExceeded, match="before the model was asked"):
            await house.infer(1, deadline=deadline)
    assert house.executor.asked == []


async def test_a_models_own_maximum_shortens_the_deadline_and_counts_from_the_edge() -> None:
    executor = GatedExecutor(_answer)
    house = House(executor, max_timeout_s=2.0)
    task = house.send(1, received=START - 0.5, deadline=START + 60)
    await executor.begun()
    assert house.clock.armed == [START + 1.5]
    house.clock.advance(1.5)
    with pytest.raises(DeadlineExceeded):
        await task
    executor.release()
    await house.clock.heard.get()


async def test_a_models_own_maximum_never_lengthens_the_deadline() -> None:
    executor = GatedExecutor(_answer)
    house = House(executor, max_timeout_s=60.0)
    task = house.send(1, deadline=START + 1)
    await executor.begun()
    assert house.clock.armed == [START + 1]
    executor.release()
    await asyncio.wait([task])
    task.exception()


async def test_a_request_older_than_the_models_maximum_is_not_queued() -> None:
    with pytest.raises(DeadlineExceeded):
        await House(max_timeout_s=1.0).infer(1, received=START - 2)


# The queue


async def test_a_priority_is_the_level_in_the_queue() -> None:
    executor = GatedExecutor(_answer, max_batch_size=1)
    executor.signature = SIGNATURE
    house = House(executor)
    first = house.send(0)
    await executor.begun()
    tasks = [house.send(p, priority=p) for p in (3, 0, 1)]
    await turns()
    executor.release(4)
    await asyncio.gather(first, *tasks)
    assert executor.values == [[0], [1], [0], [3]]


async def test_a_request_may_ask_for_a_shorter_time_in_the_queue() -> None:
    policy = QueuePolicy(default_timeout_us=900_000, allow_timeout_override=True)
    executor = GatedExecutor(_answer)
    executor.signature = SIGNATURE
    house = House(executor, batching=Batching(default_policy=policy))
    first = house.send(0)
    await executor.begun()
    asked = house.send(1, parameters={"timeout": "250000"}, received=START - 0.125)
    silent = house.send(2)
    await turns()
    assert house.clock.armed == [START + 0.125, START + 0.9]  # counted from the edge
    house.clock.advance(0.125)
    with pytest.raises(QueueTimeout):
        await asked
    executor.release(2)
    await asyncio.gather(first, silent)


async def test_one_request_more_than_the_queue_holds_is_refused() -> None:
    executor = GatedExecutor(_answer)
    executor.signature = SIGNATURE
    house = House(executor, queue_limit=1)
    tasks = [house.send(0)]
    await executor.begun()
    tasks.append(house.send(1))
    await turns()
    with pytest.raises(QueueFull):
        await house.infer(2)
    executor.release(2)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("parameters", "asked"), [({}, 0), ({"timeout": 5}, 5), ({"timeout": "7"}, 7), ({"a": 1}, 0)]
)
def test_a_timeout_is_a_number_or_its_text(parameters: dict[str, Any], asked: int) -> None:
    assert asked_timeout_us(InferContent([], parameters=parameters)) == asked


# Readiness


async def test_a_version_is_ready_while_one_instance_can_run_a_request() -> None:
    executor = GatedExecutor(_answer)
    house = House(executor)
    assert house.version.ready
    task = house.send(1, deadline=START + 1)
    await executor.begun()
    assert house.version.ready
    house.clock.advance(3.0)
    assert not house.version.ready
    with pytest.raises(DeadlineExceeded):
        await task
    executor.release()
    await house.clock.heard.get()
    assert house.version.ready


async def test_batch_traffic_stands_behind_whatever_urgency_it_asks_for() -> None:
    executor = GatedExecutor(_answer)
    house = House(executor)
    first = house.send(0)
    await executor.begun()
    batch, online = house.send(1, batch=True, priority=1), house.send(2, priority=2)
    await turns()
    assert [pending.level for pending in house.version.scheduler.queue] == [2, 3]
    executor.release(3)
    await asyncio.wait([first, batch, online])
    for task in (first, batch, online):
        task.exception()
