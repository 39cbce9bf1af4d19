"""What every job queue does: that in memory, and Kafka as librdkafka and as Apache make it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from headrace.adapters.memory_queue import MemoryQueue
from headrace.domain.chunks import ChunkRef
from headrace.ports.job_queue import DeadLetter, Delivery, JobQueue, Message
from tests.integration.queue.conftest import Cluster

_PATIENCE_S = 30.0


@pytest.fixture(params=["memory", "mock", "apache"])
async def queue(request: pytest.FixtureRequest) -> AsyncIterator[JobQueue]:
    made: JobQueue
    if request.param == "memory":
        made = MemoryQueue()
    else:
        made = Cluster(request.getfixturevalue(request.param), partitions=4).queue()
    try:
        yield made
    finally:
        await made.close()


def message(index: int, failures: int = 0) -> Message:
    return Message(ref=ChunkRef("job", index), failures=failures)


async def taken(queue: JobQueue, count: int) -> Sequence[Message | None]:
    """The next messages, each done at once."""
    found: list[Message | None] = []
    async with asyncio.timeout(_PATIENCE_S):
        while len(found) < count:
            delivery = await queue.take()
            found.append(delivery.message)
            delivery.done()
    return found


def refs(messages: Sequence[Message | None]) -> list[int]:
    return sorted(found.ref.index for found in messages if found is not None)


async def test_a_message_is_taken_as_it_was_published(queue: JobQueue) -> None:
    sent = Message(ref=ChunkRef("batch_käse/🌊", 10**9), failures=3)
    await queue.publish([sent])
    assert await taken(queue, 1) == [sent]


async def test_all_that_is_published_is_taken(queue: JobQueue) -> None:
    await queue.publish([message(index) for index in range(200)])
    await queue.publish([message(index, failures=1) for index in range(200, 250)])
    assert refs(await taken(queue, 250)) == list(range(250))


async def test_nothing_is_published_where_there_is_nothing_to_publish(queue: JobQueue) -> None:
    await queue.publish([])
    await queue.publish([message(1)])
    assert refs(await taken(queue, 1)) == [1]


async def test_taking_waits_until_there_is_something(queue: JobQueue) -> None:
    waiting = asyncio.create_task(taken(queue, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    await queue.publish([message(7)])
    assert refs(await waiting) == [7]


async def test_who_stops_waiting_loses_no_message(queue: JobQueue) -> None:
    given_up = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(0)
    staying = asyncio.create_task(taken(queue, 3))
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    await queue.publish([message(index) for index in range(3)])
    assert refs(await staying) == [0, 1, 2]


async def test_messages_that_failed_and_fresh_ones_pass_each_other(queue: JobQueue) -> None:
    await queue.publish([message(index, failures=1) for index in range(20)])
    held: list[Delivery] = []
    async with asyncio.timeout(_PATIENCE_S):
        while len(held) < 20:  # in hand, and none of them done
            held.append(await queue.take())
    await queue.publish([message(99)])
    assert refs(await taken(queue, 1)) == [99]


async def test_a_delivery_says_where_it_came_from(queue: JobQueue) -> None:
    await queue.publish([message(1)])
    async with asyncio.timeout(_PATIENCE_S):
        delivery = await queue.take()
    assert delivery.source
    assert not delivery.revoked


async def test_saying_done_twice_or_after_the_end_does_nothing(queue: JobQueue) -> None:
    await queue.publish([message(1), message(2)])
    async with asyncio.timeout(_PATIENCE_S):
        deliveries = [await queue.take(), await queue.take()]
    deliveries[0].done()
    deliveries[0].done()
    await queue.close()
    for delivery in deliveries:
        delivery.done()


async def test_a_dead_letter_is_taken_in(queue: JobQueue) -> None:
    await queue.bury(DeadLetter(reason="it failed 5 times", ref=ChunkRef("job", 1), story=("a",)))
    await queue.bury(DeadLetter(reason="it is no JSON", raw=b"\xff\0", source="t/0/1"))


async def test_closing_twice_is_closing_once(queue: JobQueue) -> None:
    await queue.publish([message(1)])
    await taken(queue, 1)
    await queue.close()
    await queue.close()


async def test_running_ends_only_when_it_is_told_to(queue: JobQueue) -> None:
    running = asyncio.create_task(queue.run())
    await queue.publish([message(1)])
    await taken(queue, 1)
    assert not running.done()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
