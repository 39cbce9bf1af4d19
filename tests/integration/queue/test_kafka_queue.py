"""What is so of the queue on Kafka alone: offsets, partitions that move, brokers that are away."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from headrace.adapters.kafka.metrics import QueueMetrics
from headrace.adapters.kafka.queue import KafkaQueue
from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import StoreUnavailable
from headrace.ports.job_queue import DeadLetter, Delivery, Message
from headrace.telemetry.metrics import Metrics
from tests.integration.queue.conftest import Cluster
from tests.support.kafka import member
from tests.support.kafka.apache import ApacheKafka
from tests.support.kafka.mock import COORDINATOR_LOAD_IN_PROGRESS, OFFSET_COMMIT, MockKafka
from tests.support.waiting import until

_PATIENCE_S = 40.0


def messages(*indices: int, failures: int = 0) -> list[Message]:
    return [Message(ref=ChunkRef("job", index), failures=failures) for index in indices]


async def take(queue: KafkaQueue, count: int) -> list[Delivery]:
    async with asyncio.timeout(_PATIENCE_S):
        return [await queue.take() for _ in range(count)]


def index(delivery: Delivery) -> int:
    assert delivery.message is not None
    return delivery.message.ref.index


def indices(deliveries: Sequence[Delivery]) -> list[int]:
    return sorted(map(index, deliveries))


def as_many_in_hand(queue: KafkaQueue, count: int) -> bool:
    assert queue.in_hand <= count
    return queue.in_hand == count


async def arrives(queue: KafkaQueue, message: Message) -> bool:
    """Whether it could be published; on a new cluster that takes longer than some queues wait."""
    try:
        await queue.publish([message])
    except StoreUnavailable:
        return False
    return True


def so_far(cluster: Cluster, offset: int) -> bool:
    return cluster.committed() == [offset]


async def crash(server: ApacheKafka | MockKafka) -> None:
    if isinstance(server, MockKafka):
        server.down()
    else:
        await asyncio.to_thread(server.kill)


async def recover(server: ApacheKafka | MockKafka) -> None:
    if isinstance(server, MockKafka):
        server.up()
    else:
        await asyncio.to_thread(server.start)


# --- session set-up and clean-up ------------------------------------------------------------------


async def test_topics_that_are_missing_are_made_with_as_many_partitions_as_are_set(
    apache: ApacheKafka,
) -> None:
    cluster = Cluster(apache, partitions=3)
    try:
        await cluster.queue().publish(messages(1))
        assert [await asyncio.to_thread(cluster.count, name) for name in cluster.topics] == [3] * 3
    finally:
        await cluster.close()


async def test_who_only_publishes_is_given_no_partitions(cluster: Cluster) -> None:
    publisher, worker = cluster.queue(), cluster.queue()
    await publisher.publish(messages(*range(20)))
    assert indices(await take(worker, 20)) == list(range(20))
    assert worker.partitions == 8  # all, of both topics
    assert publisher.partitions == 0


async def test_who_closes_leaves_at_once_so_that_others_take_over(apache: ApacheKafka) -> None:
    cluster = Cluster(apache, partitions=4)
    leaving, staying = cluster.queue(session_timeout_s=30.0), cluster.queue(session_timeout_s=30.0)
    try:
        await leaving.publish(messages(0))
        await take(leaving, 1)
        waiting = asyncio.create_task(take(staying, 1))
        await until(lambda: staying.partitions == leaving.partitions == 4, timeout_s=_PATIENCE_S)
        began = time.monotonic()
        await leaving.close()
        await until(lambda: staying.partitions == 8, timeout_s=_PATIENCE_S)
        assert time.monotonic() - began < 25.0  # and not when the session is over
        await waiting
    finally:
        await cluster.close()


async def test_who_joins_later_has_its_share_of_the_chunks(mock: MockKafka) -> None:
    cluster = Cluster(mock, partitions=4)
    first, second = cluster.queue(), cluster.queue()
    try:
        await first.publish(messages(*range(40)))
        held = await take(first, 40)  # out of all partitions
        taking = asyncio.create_task(take(second, 1))
        await taking
        assert len({d.source.rpartition("/")[0] for d in held if d.revoked}) == 2
    finally:
        await cluster.close()


async def test_after_the_end_nothing_is_published(cluster: Cluster) -> None:
    queue = cluster.queue()
    await queue.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await queue.publish(messages(1))


# --- messages that cannot be read -----------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1])
async def test_what_cannot_be_read_is_delivered_as_it_came(cluster: Cluster) -> None:
    raws = [
        b"not JSON", b"\xff\xfe\0", b"", b"null", b"[]", b"{}", b'{"v":1,"job":"j"}',
        b'{"v":1,"job":"j","chunk":"1"}', b'{"v":1,"job":"j","chunk":-1}',
        b'{"v":1,"job":"","chunk":1}', b'{"v":2,"job":"j","chunk":1}',
        b'{"v":1,"job":"j","chunk":1,"failures":-1}', b'{"job":"\xff","chunk":1}',
        b"[" * 10_000, b'{"v":1,"job":"j","chunk":1}' + b" " * 100_000,
    ]  # fmt: skip
    queue = cluster.queue()
    await queue.publish(messages(0))
    for raw in raws:
        cluster.send(raw)
    await queue.publish(messages(1))
    first, *strange, last = await take(queue, len(raws) + 2)
    assert [delivery.raw for delivery in strange] == raws
    assert {delivery.message for delivery in strange} == {None}
    assert (index(first), index(last)) == (0, 1)
    # they are done as any other
    for delivery in (first, *strange, last):
        delivery.done()
    await until(lambda: cluster.committed() == [len(raws) + 2])


async def test_a_record_without_a_value_is_delivered_as_unreadable(cluster: Cluster) -> None:
    queue = cluster.queue()
    await queue.publish(messages(1))
    (await take(queue, 1))[0].done()
    cluster.send(None)
    (delivery,) = await take(queue, 1)
    assert (delivery.message, delivery.raw) == (None, b"")


@pytest.mark.parametrize("partitions", [1])
async def test_the_log_says_once_in_a_while_where_what_cannot_be_read_is_and_why(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    queue = cluster.queue()
    await queue.publish(messages(0))
    for raw in (b'{"v":1,"job":"j"}', b"not JSON", b"neither"):
        cluster.send(raw)
    await take(queue, 4)
    told = [record for record in caplog.records if "cannot be read" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    settings = cluster.settings()
    assert told[0].getMessage() == (
        f"Kafka message: topic {settings.chunks_topic}, partition 0, offset 1 cannot be read: "
        f"Object missing required field `chunk`. It is for {settings.dead_topic}"
    )


async def test_fields_that_a_newer_process_added_are_left_alone(cluster: Cluster) -> None:
    queue = cluster.queue()
    await queue.publish(messages(1))
    (await take(queue, 1))[0].done()
    cluster.send(b'{"v":1,"job":"j","chunk":7,"failures":0,"mood":"good"}')
    (delivery,) = await take(queue, 1)
    assert index(delivery) == 7


async def test_a_dead_letter_tells_the_whole_story_to_who_reads_the_topic(cluster: Cluster) -> None:
    queue = cluster.queue()
    raw = bytes(range(256)) * 10_000  # more than a record may have
    await queue.bury(DeadLetter(reason="strange", raw=raw, source="t/0/7", story=("one", "two")))
    letter = json.loads(await asyncio.to_thread(cluster.dead))
    kept = base64.b64decode(letter.pop("raw"))
    assert raw.startswith(kept)
    assert len(kept) >= 100_000
    assert letter == {
        "v": 1, "reason": "strange", "job": None, "chunk": None, "raw_bytes": len(raw),
        "source": "t/0/7", "story": ["one", "two"],
    }  # fmt: skip


# --- offsets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1])
async def test_only_what_lies_before_the_first_that_is_not_done_is_committed(
    cluster: Cluster,
) -> None:
    queue = cluster.queue()
    await queue.publish(messages(*range(6)))
    deliveries = await take(queue, 6)
    for done, expected in ((0, 1), (2, 1), (4, 1), (3, 1), (1, 5), (5, 6)):
        deliveries[done].done()
        await until(partial(so_far, cluster, expected))
        assert queue.in_hand == 6 - 1 - [0, 2, 4, 3, 1, 5].index(done)


@pytest.mark.parametrize("partitions", [1])
async def test_what_is_done_ahead_of_others_is_not_committed_at_the_end_either(
    cluster: Cluster,
) -> None:
    first, second = cluster.queue(), cluster.queue()
    await first.publish(messages(*range(5)))
    deliveries = await take(first, 5)
    for done in (0, 1, 3, 4):
        deliveries[done].done()
    await first.close()
    assert cluster.committed() == [2]
    assert indices(await take(second, 3)) == [2, 3, 4]


@pytest.mark.parametrize("partitions", [1])
async def test_nothing_is_committed_before_anything_is_done(cluster: Cluster) -> None:
    queue = cluster.queue()
    await queue.publish(messages(1, 2))
    await take(queue, 2)
    await queue.close()
    assert queue.commits == 0
    assert cluster.committed()[0] < 0


@pytest.mark.parametrize("partitions", [1])
async def test_what_was_done_last_is_committed_at_the_end(cluster: Cluster) -> None:
    queue = cluster.queue(commit_interval_s=3600.0)
    await queue.publish(messages(*range(9)))
    for delivery in await take(queue, 9):
        delivery.done()
    await queue.close()
    assert cluster.committed() == [9]


async def test_commits_are_fewer_than_messages(cluster: Cluster) -> None:
    queue = cluster.queue(commit_interval_s=0.5)
    await queue.publish(messages(*range(400)))
    for delivery in await take(queue, 400):
        delivery.done()
    await until(lambda: sum(cluster.committed()) == 400)
    assert 1 <= queue.commits <= 40


@pytest.mark.parametrize("partitions", [1])
async def test_a_commit_that_failed_is_made_again(mock: MockKafka, partitions: int) -> None:
    cluster = Cluster(mock, partitions=partitions)
    queue = cluster.queue()
    metrics = Metrics()
    QueueMetrics(queue, metrics)
    try:
        await queue.publish(messages(1))
        (delivery,) = await take(queue, 1)
        mock.fail(OFFSET_COMMIT, [COORDINATOR_LOAD_IN_PROGRESS] * 8)
        delivery.done()
        await until(lambda: cluster.committed() == [1])
        assert queue.in_hand == 0
        assert shown(metrics)["commit_failures_total"] >= 1
    finally:
        await cluster.close()


# --- what is counted ------------------------------------------------------------------------------


def shown(metrics: Metrics) -> dict[str, float]:
    """The samples of the queue, without what their names have in common."""
    lines = metrics.render()[0].decode().splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if line.startswith("headrace_job_queue_")]
    return {name.removeprefix("headrace_job_queue_"): float(value) for name, value in samples}


async def test_all_that_waits_is_counted_while_the_hands_of_a_process_are_full(
    cluster: Cluster,
) -> None:
    queue, other = cluster.queue(max_in_hand=2), cluster.queue()
    metrics = Metrics()
    QueueMetrics(queue, metrics)
    chunks, retry = (f'{{topic="{cluster.topic}.{name}"}}' for name in ("chunks", "retry"))
    await other.publish(messages(*range(40)))
    held = await take(queue, 2)
    await until(lambda: shown(metrics)[f"lag_messages{chunks}"] == 40, timeout_s=_PATIENCE_S)
    await other.publish(messages(*range(40, 60)))
    await until(lambda: shown(metrics)[f"lag_messages{chunks}"] == 60, timeout_s=_PATIENCE_S)
    assert shown(metrics)["in_hand_messages"] == 2
    for delivery in held:
        delivery.done()
    for _ in range(58):
        (await take(queue, 1))[0].done()
    await queue.publish(messages(1, failures=1))
    (failed,) = await take(queue, 1)
    await until(lambda: shown(metrics)[f"lag_messages{chunks}"] == 0, timeout_s=_PATIENCE_S)
    await until(lambda: shown(metrics)[f"lag_messages{retry}"] == 1, timeout_s=_PATIENCE_S)
    failed.done()
    await queue.bury(DeadLetter(reason="strange"))
    found = shown(metrics)
    assert found[f"partitions{chunks}"] == found[f"partitions{retry}"] == 4
    assert (found["published_total"], found["taken_total"], found["buried_total"]) == (1, 61, 1)
    assert (found["commits_total"] > 0, found["rebalances_total"] > 0) == (True, True)
    assert found["commit_failures_total"] == 0
    await queue.close()
    assert shown(metrics)[f"partitions{chunks}"] == 0


async def test_what_another_process_has_done_is_not_counted_as_waiting(cluster: Cluster) -> None:
    first = cluster.queue()
    await first.publish(messages(*range(40)))
    for delivery in (await take(first, 40))[:30]:
        delivery.done()
    await first.close()
    left = 40 - sum(max(offset, 0) for offset in cluster.committed())
    second = cluster.queue(max_in_hand=1)
    metrics = Metrics()
    QueueMetrics(second, metrics)
    await take(second, 1)  # of one partition: of the others it has read nothing
    name = f'lag_messages{{topic="{cluster.topic}.chunks"}}'
    await until(lambda: shown(metrics)[name] == left, timeout_s=_PATIENCE_S)
    await second.close()
    assert shown(metrics)[name] == 0


# --- members come, go and crash -------------------------------------------------------------------


@pytest.fixture
def killed(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A process of the group, which a test kills while it has everything in hand."""
    settings = cluster.settings()
    assert member.__file__ is not None
    command = [sys.executable, member.__file__, settings.brokers, settings.topic, settings.group]
    with subprocess.Popen(
        [*command, "1.0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        yield process
        process.kill()


async def test_what_a_process_had_in_hand_when_it_crashed_comes_again(
    cluster: Cluster, killed: subprocess.Popen[str]
) -> None:
    survivor = cluster.queue(session_timeout_s=1.0)
    await survivor.publish(messages(*range(12)))
    assert killed.stdout is not None
    for _ in range(12):
        assert await asyncio.to_thread(killed.stdout.readline)
    killed.kill()
    assert indices(await take(survivor, 12)) == list(range(12))


async def test_a_revoked_partition_stops_and_is_not_committed(cluster: Cluster) -> None:
    first, second = cluster.queue(), cluster.queue()
    await first.publish(messages(*range(40)))
    held = await take(first, 40)
    again = asyncio.create_task(second.take())
    await until(lambda: any(delivery.revoked for delivery in held), timeout_s=_PATIENCE_S)
    await until(lambda: second.partitions == first.partitions == 4, timeout_s=_PATIENCE_S)
    revoked = [delivery for delivery in held if delivery.revoked]
    kept = [delivery for delivery in held if not delivery.revoked]
    assert first.in_hand == len(kept)
    for delivery in revoked:
        delivery.done()
    assert first.in_hand == len(kept)
    for delivery in kept:
        delivery.done()
    await until(lambda: sum(x for x in cluster.committed() if x > 0) == len(kept))
    # the other has them all
    theirs = [await again, *await take(second, len(revoked) - 1)]
    assert indices(theirs) == indices(revoked)
    await first.close()
    assert sum(x for x in cluster.committed() if x > 0) == len(kept)


async def test_a_partition_that_is_back_is_not_changed_by_what_was_in_hand_before(
    cluster: Cluster,
) -> None:
    first, second = cluster.queue(), cluster.queue()
    await first.publish(messages(*range(40)))
    held = await take(first, 40)
    again = asyncio.create_task(second.take())
    await until(lambda: any(delivery.revoked for delivery in held), timeout_s=_PATIENCE_S)
    await until(lambda: second.partitions == 4, timeout_s=_PATIENCE_S)
    await again
    await second.close()
    await until(lambda: first.partitions == 8, timeout_s=_PATIENCE_S)
    old = [delivery for delivery in held if delivery.revoked]
    back = await take(first, len(old))
    assert indices(back) == indices(old)
    for delivery in old:
        delivery.done()
    await first.close()
    assert all(offset < 0 for offset in cluster.committed())


async def test_nothing_is_lost_while_members_join_and_leave(cluster: Cluster) -> None:
    publisher = cluster.queue()
    total = 240
    done: set[int] = set()

    async def work(queue: KafkaQueue) -> None:
        while True:
            delivery = await queue.take()
            await asyncio.sleep(0.002)
            if not delivery.revoked:
                done.add(index(delivery))
                delivery.done()

    async def come_and_go() -> None:
        queue = cluster.queue(max_in_hand=8)
        working = asyncio.create_task(work(queue))
        before = len(done)
        await until(lambda: queue.taken > 10 or len(done) >= total or len(done) > before + 60)
        working.cancel()
        await queue.close()

    steady = cluster.queue(max_in_hand=8)
    staying = asyncio.create_task(work(steady))
    for start in range(0, total, 80):
        await publisher.publish(messages(*range(start, start + 80)))
        await asyncio.gather(come_and_go(), come_and_go())
    await until(lambda: len(done) == total, timeout_s=_PATIENCE_S)
    await until(lambda: sum(cluster.committed()) == total, timeout_s=_PATIENCE_S)
    staying.cancel()
    assert steady.rebalances > 2


# --- back-pressure --------------------------------------------------------------------------------


async def test_no_more_are_in_hand_than_are_allowed(cluster: Cluster) -> None:
    queue = cluster.queue(max_in_hand=3)
    await queue.publish(messages(*range(30)))
    seen: list[int] = []
    for left in range(30, 0, -1):
        (delivery,) = await take(queue, 1)
        await until(partial(as_many_in_hand, queue, min(3, left)))
        seen.append(index(delivery))
        delivery.done()
    assert sorted(seen) == list(range(30))


async def test_who_works_for_long_stays_a_member(cluster: Cluster) -> None:
    patience = {"max.poll.interval.ms": "1000"}
    queue = cluster.queue(max_in_hand=2, session_timeout_s=1.0, options=patience)
    await queue.publish(messages(*range(10)))
    held = await take(queue, 2)
    rebalances, began = queue.rebalances, time.monotonic()
    await until(lambda: time.monotonic() - began > 2.5)  # more than it may be silent
    assert queue.rebalances == rebalances
    assert not any(delivery.revoked for delivery in held)
    for delivery in held:
        delivery.done()
    assert len(await take(queue, 2)) == 2


# --- brokers are away -----------------------------------------------------------------------------


async def test_publishing_fails_in_time_while_brokers_are_away_and_works_when_they_are_back(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    queue = cluster.queue(publish_timeout_s=1.0)
    patient = cluster.queue(publish_timeout_s=30.0)
    await until(lambda: arrives(queue, *messages(0)), timeout_s=_PATIENCE_S)
    (held,) = await take(queue, 1)
    await crash(cluster.server)
    try:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="Kafka"):
                await queue.publish(messages(1))
            assert time.monotonic() - began < 3.0
        with pytest.raises(StoreUnavailable, match="Kafka"):
            await queue.bury(DeadLetter(reason="strange"))
        held.done()
    finally:
        await recover(cluster.server)
    await patient.publish(messages(2))
    # the consumer is back by itself, and knows what was done before
    while True:
        (delivery,) = await take(queue, 1)
        delivery.done()
        if index(delivery) == 2:
            break
    await until(lambda: queue.in_hand == 0)
    lines = [line for line in caplog.records if line.name.startswith("headrace.adapters.kafka")]
    assert len(lines) <= 30
    assert all(line.levelno <= logging.WARNING for line in lines)


async def test_a_process_that_starts_while_brokers_are_away_takes_part_when_they_are_back(
    mock: MockKafka,
) -> None:
    mock.down()
    cluster = Cluster(mock, partitions=4)
    queue, patient = cluster.queue(publish_timeout_s=0.5), cluster.queue(publish_timeout_s=30.0)
    try:
        taking = asyncio.create_task(take(queue, 1))
        with pytest.raises(StoreUnavailable, match="Kafka"):
            await queue.publish(messages(1))
        mock.up()
        await patient.publish(messages(2))
        assert indices(await taking) == [2]
    finally:
        await cluster.close()


async def test_closing_ends_in_time_while_brokers_are_away(mock: MockKafka) -> None:
    cluster = Cluster(mock, partitions=4)
    queue = cluster.queue(publish_timeout_s=1.0)
    await until(lambda: arrives(queue, *messages(1)), timeout_s=_PATIENCE_S)
    (delivery,) = await take(queue, 1)
    mock.down()
    delivery.done()
    began = time.monotonic()
    await queue.close()
    assert time.monotonic() - began < 25.0
    mock.up()
