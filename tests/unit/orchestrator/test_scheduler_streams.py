from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    QueueFull,
    QueueTimeout,
)
from headrace.domain.models import Batching, QueuePolicy
from headrace.domain.tensors import Array
from headrace.orchestrator.outlet import UNREAD_LIMIT, Outlet
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.statistics import RESPONSE_PLACES
from headrace.ports.executor import Arrays
from tests.support.executors import FakeExecutor, SteppedExecutor, counting
from tests.support.waiting import until
from tests.unit.orchestrator.stage import NOTHING, Stage, turns, values


class Stream:
    """A request of a stage, and what its reader has read."""

    def __init__(self, stage: Stage, *values: float, **options: Any) -> None:
        self.stage = stage
        self.request: Pending = stage.request(*values, **options)
        self.outlet = Outlet(self.request.future, loop=stage.clock.loop)
        self.request.outlet = self.outlet
        stage.scheduler.enter(self.request)

    async def read(self, count: int = 10**6) -> list[float]:
        """At most so many answers; fewer at the end."""
        got: list[float] = []
        while len(got) < count and (answer := await self.outlet.next()) is not None:
            got += values(answer)
        return got

    def leave(self) -> None:
        self.stage.scheduler.leave(self.request)


@contextlib.asynccontextmanager
async def reading(stage: Stage, *values: float, **options: Any) -> AsyncIterator[Stream]:
    stream = Stream(stage, *values, **options)
    try:
        yield stream
    finally:
        stream.leave()


async def _idle(stage: Stage) -> None:
    """Wait until no instance has work."""
    instances = stage.scheduler._instances  # noqa: SLF001
    await until(lambda: all(instance.run is None for instance in instances))


def _stats(stage: Stage) -> dict[str, Any]:
    return stage.scheduler.statistics.as_triton("m", "1")


def _counts(stage: Stage) -> dict[str, int]:
    return {
        name: duration["count"]
        for name, duration in _stats(stage)["inference_stats"].items()
        if duration["count"]
    }


# Answers


@pytest.mark.parametrize("count", [0, 1, 5, 100])
async def test_all_answers_come_in_their_order(count: int) -> None:
    stage = Stage(FakeExecutor(answers=counting))
    async with reading(stage, count) as stream:
        assert await stream.read() == list(range(count))
    assert stage.left_over == NOTHING


async def test_a_stream_never_runs_on_the_loop_even_where_it_seems_short() -> None:
    executor = FakeExecutor(answers=counting, bounded=True)
    stage = Stage(executor)
    stage.scheduler.times.observe(1, 1e-6)
    for _ in range(3):
        async with reading(stage, 1) as stream:
            await stream.read()
        await _idle(stage)
    assert threading.get_ident() not in executor.threads


async def test_streams_are_not_merged_and_do_not_wait_for_company() -> None:
    executor = FakeExecutor(answers=counting)
    stage = Stage(executor, batching=Batching(preferred_sizes=(4,), max_delay_us=10**6))
    streams = [Stream(stage, 1, 7), Stream(stage, 2, 8)]
    assert [await stream.read() for stream in streams] == [[0], [0, 1]]
    for stream in streams:
        stream.leave()
    assert executor.values == [[1, 7], [2, 8]]
    assert stage.left_over == NOTHING


async def test_the_model_is_no_further_ahead_of_its_reader_than_the_bound() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    stage = Stage(executor)
    async with reading(stage, 1) as stream:
        await until(lambda: executor.made == UNREAD_LIMIT)
        for read in range(1, 30):
            await stream.read(1)
            await until(lambda read=read: executor.made == read + UNREAD_LIMIT)  # type: ignore[misc]
            await turns()
            assert executor.made == read + UNREAD_LIMIT
    await _idle(stage)


async def test_two_instances_stream_at_the_same_time() -> None:
    executors = [SteppedExecutor(), SteppedExecutor()]
    stage = Stage(*executors)
    async with reading(stage, 1) as one, reading(stage, 2) as other:
        for _ in range(3):
            for executor in executors:
                executor.allow()
            await asyncio.gather(one.read(1), other.read(1))
        assert [executor.made for executor in executors] == [3, 3]
        for executor in executors:
            executor.allow()
    await _idle(stage)


async def test_a_request_behind_a_stream_waits_for_its_end() -> None:
    stage = Stage(FakeExecutor(answers=counting))
    async with reading(stage, UNREAD_LIMIT + 2) as first:
        assert await first.read(1) == [0]
        async with reading(stage, 3) as second:
            task = asyncio.get_running_loop().create_task(second.read())
            await turns()
            assert not task.done()
            await first.read()
            assert await task == [0, 1, 2]
    assert stage.left_over == NOTHING


async def test_the_most_urgent_stream_runs_first() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor)
    first = Stream(stage, 0)
    await until(executor.begun.is_set)
    streams = [Stream(stage, p, priority=p) for p in (3, 2, 1)]
    executor.allow(1000)
    first.leave()
    for stream in reversed(streams):
        await stream.read(1)
        stream.leave()
    assert executor.values == [[0], [1], [2], [3]]
    await _idle(stage)


# Stopping early


async def test_a_reader_that_stops_ends_the_model_on_its_own_thread() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    stage = Stage(executor)
    async with reading(stage, 1) as stream:
        await stream.read(3)
    assert stage.left_over == NOTHING
    await _idle(stage)
    assert executor.ended_by == executor.threads[0] != threading.get_ident()
    assert executor.made <= 3 + UNREAD_LIMIT
    assert _counts(stage) == {"cancel": 1}


async def test_a_model_at_work_when_its_reader_stops_is_ended_at_its_next_answer() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor)
    async with reading(stage, 1):
        await until(executor.begun.is_set)
    assert stage.scheduler.in_flight == 0
    assert executor.ended_by == 0
    executor.allow()
    await _idle(stage)
    assert (executor.made, executor.ended_by) == (1, executor.threads[0])


async def test_an_executors_stream_is_closed_even_if_the_executor_keeps_it() -> None:
    kept: list[Iterator[Sequence[Array]]] = []

    class Keeping(SteppedExecutor):
        def stream(self, inputs: Arrays) -> Iterator[Sequence[Array]]:
            kept.append(super().stream(inputs))
            return kept[-1]

    executor = Keeping()
    stage = Stage(executor)
    async with reading(stage, 1):
        await until(executor.begun.is_set)
    executor.allow()
    await _idle(stage)
    assert executor.ended_by == executor.threads[0]


async def test_a_stream_that_is_left_in_the_queue_never_runs() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor)
    async with reading(stage, 1):
        await until(executor.begun.is_set)
        async with reading(stage, 2):
            await turns()
    assert stage.left_over == NOTHING
    executor.allow()
    await _idle(stage)
    assert executor.values == [[1]]


# Deadlines and bounds


async def test_a_deadline_ends_a_stream_that_waits_for_its_model() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor)
    async with reading(stage, 1, within_s=5.0) as stream:
        executor.allow(2)
        assert await stream.read(2) == [0, 1]
        task = asyncio.get_running_loop().create_task(stream.read())
        await turns()
        stage.clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            await task
    assert stage.left_over == NOTHING
    assert _counts(stage) == {"fail": 1}
    assert stage.metrics.abandoned.value == 1
    executor.allow()
    await _idle(stage)
    assert executor.ended_by == executor.threads[0]
    assert _counts(stage) == {"fail": 1}


async def test_a_deadline_ends_a_stream_that_waits_for_its_reader() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    stage = Stage(executor)
    stream = Stream(stage, 1, within_s=5.0)  # and nobody ever reads or leaves
    await until(lambda: executor.made == UNREAD_LIMIT)
    stage.clock.advance(5.0)
    await _idle(stage)
    assert executor.ended_by == executor.threads[0]
    with pytest.raises(DeadlineExceeded):  # not even what was made in time
        await stream.read(1)
    stream.leave()
    assert stage.left_over == NOTHING


async def test_an_instance_that_works_on_for_nobody_counts_as_hung_by_its_last_answer() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor)
    async with reading(stage, 1, within_s=60.0) as stream:
        executor.allow()
        await stream.read(1)
        await until(lambda: stream.outlet.moved)
        stage.clock.advance(30.0)
        executor.allow()
        await stream.read(1)
        await until(lambda: stream.outlet.moved > 1010)
    assert stage.scheduler.hung == 0  # it has worked for 30 s, but on this answer for none
    assert stage.scheduler.suspect
    stage.clock.advance(2.0)
    assert stage.scheduler.hung == 1
    executor.allow()
    await _idle(stage)
    assert stage.scheduler.hung == 0


async def test_a_full_queue_refuses_a_stream() -> None:
    executor = SteppedExecutor()
    stage = Stage(executor, queue_limit=1)
    async with reading(stage, 0):
        await until(executor.begun.is_set)
        async with reading(stage, 1):
            with pytest.raises(QueueFull):
                Stream(stage, 2)
            assert stage.scheduler.in_flight == 2
    executor.allow()
    await _idle(stage)


async def test_a_stream_waits_in_the_queue_no_longer_than_it_may() -> None:
    policy = QueuePolicy(default_timeout_us=500_000)
    executor = SteppedExecutor()
    stage = Stage(executor, batching=Batching(default_policy=policy))
    async with reading(stage, 0):
        await until(executor.begun.is_set)
        async with reading(stage, 1) as second:
            task = asyncio.get_running_loop().create_task(second.read())
            await turns()
            stage.clock.advance(0.5)
            with pytest.raises(QueueTimeout):
                await task
    assert stage.left_over == NOTHING
    executor.allow()
    await _idle(stage)


# Failures


class _Panic(BaseException):
    pass


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (InvalidRequest("no"), InvalidRequest),
        (ModelFailed("no"), ModelFailed),
        (RuntimeError("no"), ModelFailed),
        (_Panic("no"), ModelFailed),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
async def test_a_failure_ends_the_stream_behind_the_answers_before_it(
    raised: BaseException, kind: type[HeadraceError], at: int
) -> None:
    executor = SteppedExecutor(raises=raised, at=at)
    executor.allow(1000)
    stage = Stage(executor)
    async with reading(stage, 1) as stream:
        assert await stream.read(at) == list(range(at))
        with pytest.raises(kind):
            await stream.read(1)
    assert stage.left_over == NOTHING
    assert _counts(stage) == {"fail": 1}


async def test_a_failure_that_nobody_asks_for_is_no_loose_end() -> None:
    loose: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loose.append(context))
    executor = SteppedExecutor(raises=ModelFailed("no"))
    executor.allow()
    stage = Stage(executor)
    stream = Stream(stage, 1)
    await until(stream.request.future.done)
    stream.leave()
    assert stage.left_over == NOTHING
    await _idle(stage)
    stage.requests.clear()
    executor.raises = None  # whose traceback holds the frames that hold the request
    del stream
    gc.collect()
    assert loose == []


# Ending a version


async def test_draining_waits_until_a_stream_is_read() -> None:
    stage = Stage(FakeExecutor(answers=counting))
    stream = Stream(stage, 2)
    drained = asyncio.get_running_loop().create_task(stage.scheduler.drain())
    assert await stream.read() == [0, 1]
    await turns()
    assert not drained.done()
    stream.leave()
    await drained


async def test_a_version_that_is_closed_ends_the_streams_that_go_on() -> None:
    executor = SteppedExecutor()
    executor.allow(1000)
    stage = Stage(executor)
    async with reading(stage, 1) as stream:
        await stream.read(2)
        stage.scheduler.close()
        await executor.ended()
        with pytest.raises(ModelNotReady, match="unloaded before it had given all answers"):
            await stream.read(1)
    assert executor.ended_by == executor.threads[0]
    assert stage.left_over == NOTHING


# Statistics


async def test_streams_are_counted_as_requests_and_their_answers_by_place() -> None:
    stage = Stage(FakeExecutor(answers=counting))
    for count in (2, 0, 2):
        async with reading(stage, count) as stream:
            await stream.read()
    told = _stats(stage)
    assert _counts(stage) == dict.fromkeys(
        ("success", "queue", "compute_input", "compute_infer", "compute_output"), 3
    )
    assert (told["inference_count"], told["execution_count"]) == (3, 3)
    assert {
        place: {name: duration["count"] for name, duration in each.items() if duration["count"]}
        for place, each in told["response_stats"].items()
    } == {
        "0": {"compute_infer": 3, "compute_output": 2, "success": 2, "empty_response": 1},
        "1": {"compute_infer": 2, "compute_output": 2, "success": 2},
        "2": {"compute_infer": 2, "empty_response": 2},
    }


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_a_failure_and_a_cancellation_are_counted_at_their_place(end: str) -> None:
    executor = SteppedExecutor(raises=ModelFailed("no") if end == "fail" else None, at=1)
    stage = Stage(executor)
    async with reading(stage, 1) as stream:
        executor.allow()
        await stream.read(1)
        if end == "fail":
            executor.allow()
            with pytest.raises(ModelFailed):
                await stream.read(1)
    executor.allow()
    await _idle(stage)
    places = _stats(stage)["response_stats"]
    assert {place: each[end]["count"] for place, each in places.items()} == {"0": 0, "1": 1}
    assert places["1"]["success"]["count"] == 0


async def test_a_long_stream_takes_no_more_places_than_are_told_apart() -> None:
    stage = Stage(FakeExecutor(answers=counting))
    async with reading(stage, 1000) as stream:
        await stream.read()
    places = _stats(stage)["response_stats"]
    assert len(places) == RESPONSE_PLACES
    assert places["0"]["success"]["count"] == 1
    assert places[str(RESPONSE_PLACES - 1)]["success"]["count"] == 1000 - (RESPONSE_PLACES - 1)


async def test_a_version_that_answers_once_tells_no_responses() -> None:
    stage = Stage(FakeExecutor())
    await stage.send(1)
    assert _stats(stage)["response_stats"] == {}
