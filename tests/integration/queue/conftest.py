"""A cluster for the queue, whichever it is, and members of its group."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Literal

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.adapters.kafka.queue import KafkaQueue
from headrace.adapters.kafka.settings import KafkaSettings
from tests.support.kafka.apache import ApacheKafka, running
from tests.support.kafka.mock import MockKafka, mocking

_NUMBERS: Final = itertools.count(1)
_ANSWER_S: Final = 10.0


class Cluster:
    """Topics of one test on a cluster, and the queues that use them."""

    def __init__(self, server: ApacheKafka | MockKafka, *, partitions: int) -> None:
        self.server = server
        self.topic = f"test-{next(_NUMBERS)}"
        self.partitions = partitions
        self._queues: list[KafkaQueue] = []
        if isinstance(server, MockKafka):  # which cannot be asked for topics
            for name in self.topics:
                server.create_topic(name, partitions)

    @property
    def topics(self) -> list[str]:
        """Their names."""
        return [f"{self.topic}.{name}" for name in ("chunks", "retry", "dead")]

    def settings(self, **changes: Any) -> KafkaSettings:
        return KafkaSettings(
            **{
                "brokers": self.server.bootstrap,
                "topic": self.topic,
                "group": self.topic,
                "session_timeout_s": 2.0,
                "max_in_hand": 1000,
                "partitions": self.partitions,
                "commit_interval_s": 0.02,
                "retry_s": 0.1,
                **changes,
            }
        )

    def queue(self, **changes: Any) -> KafkaQueue:
        """One more process that takes part, as it were."""
        made = KafkaQueue(self.settings(**changes))
        self._queues.append(made)
        return made

    def committed(self, topic: Literal["chunks", "retry"] = "chunks") -> list[int]:
        """Where the group would begin in each partition; below 0 where it has committed nothing."""
        settings = self.settings()
        group = settings.group if topic == "chunks" else settings.retry_group
        asking = Consumer({"bootstrap.servers": self.server.bootstrap, "group.id": group})
        try:
            where = [TopicPartition(f"{self.topic}.{topic}", p) for p in range(self.partitions)]
            return [found.offset for found in asking.committed(where, timeout=_ANSWER_S)]
        finally:
            asking.close()

    def count(self, topic: str) -> int:
        """How many partitions a topic has."""
        asking = Producer({"bootstrap.servers": self.server.bootstrap})
        return len(asking.list_topics(timeout=_ANSWER_S).topics[topic].partitions)

    def send(self, raw: bytes | None) -> None:
        """A record that some other program wrote into the topic."""
        producer = Producer({"bootstrap.servers": self.server.bootstrap})
        producer.produce(f"{self.topic}.chunks", raw)
        assert producer.flush(_ANSWER_S) == 0

    def dead(self) -> bytes:
        """The first record of the dead letters."""
        reader = Consumer(
            {
                "bootstrap.servers": self.server.bootstrap,
                "group.id": f"{self.topic}.reader",
                "auto.offset.reset": "earliest",
            }
        )
        try:
            parts = range(self.partitions)
            reader.assign([TopicPartition(f"{self.topic}.dead", part, 0) for part in parts])
            record = reader.poll(_ANSWER_S)
            assert record is not None
            assert record.error() is None
            return record.value() or b""
        finally:
            reader.close()

    async def close(self) -> None:
        for queue in self._queues:
            await queue.close()


@pytest.fixture(scope="session")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka. Whoever stops it starts it again."""
    with running(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def mock() -> Iterator[MockKafka]:
    with mocking() as server:
        yield server


@pytest.fixture
def partitions() -> int:
    """Of each topic; a test that needs another number has it as a parameter."""
    return 4


@pytest.fixture(params=["mock", "apache"])
async def cluster(request: pytest.FixtureRequest, partitions: int) -> AsyncIterator[Cluster]:
    made = Cluster(request.getfixturevalue(request.param), partitions=partitions)
    try:
        yield made
    finally:
        await made.close()
