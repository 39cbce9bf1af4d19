"""Which Kafka carries the news of chunks, and how this process takes part."""

from __future__ import annotations

from typing import Final

import msgspec

# What never to lose a message rests on, and what has a setting of its own.
_FIXED: Final = frozenset(
    {
        "acks", "auto.offset.reset", "bootstrap.servers", "client.id", "enable.auto.commit",
        "enable.auto.offset.store", "enable.idempotence", "enable.partition.eof", "group.id",
        "group.instance.id", "group.protocol", "message.timeout.ms", "metadata.broker.list",
        "delivery.timeout.ms", "partition.assignment.strategy", "request.required.acks",
        "session.timeout.ms",
    }
)  # fmt: skip


class KafkaSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="kafka",
):  # fmt: skip
    """A queue that several processes share: they are one consumer group."""

    #: Where some brokers answer: `host:port,host:port`.
    brokers: str = "127.0.0.1:9092"
    #: What the topics' names begin with: `{topic}.chunks`, `{topic}.retry` and `{topic}.dead`.
    topic: str = "headrace.batch"
    #: The consumer group of all processes that share the work; chunks that have failed are read by
    #: the group `{group}.retry`.
    group: str = "headrace.batch"
    #: How this process is called in the brokers' logs and quotas.
    client_id: str = "headrace"
    #: A name that this member keeps over restarts, unlike any other's: one that is back within the
    #: session timeout has its partitions back, and others do not take over before that. "": none.
    instance_id: str = ""
    #: Seconds of silence after which others take over what a process had. Brokers have bounds for
    #: it (`group.min.session.timeout.ms`).
    session_timeout_s: float = 10.0
    #: Messages in this process's hands; at so many it takes no more until some are done. They are
    #: small, and a partition's messages are one process's anyway.
    max_in_hand: int = 64
    #: Seconds within which brokers must have acknowledged what is published.
    publish_timeout_s: float = 10.0
    #: Seconds between commits of what is done.
    commit_interval_s: float = 0.2
    #: Seconds after which a consumer that cannot go on is made anew.
    retry_s: float = 2.0
    #: Partitions of a topic that this process creates, where it finds none: as many processes can
    #: share the work.
    partitions: int = 12
    #: Copies of each partition of such a topic; 0: as many as the brokers do by default.
    replication_factor: int = 0
    #: Further options of librdkafka, as `security.protocol`, `sasl.mechanism` or `ssl.ca.location`.
    options: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in ("brokers", "topic", "group", "client_id"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for name in ("session_timeout_s", "publish_timeout_s", "commit_interval_s", "retry_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_in_hand", "partitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.replication_factor < 0:
            raise ValueError(
                f"replication_factor must not be negative, got {self.replication_factor}"
            )
        fixed = _FIXED & self.options.keys()
        if fixed:
            raise ValueError(f"options sets {', '.join(sorted(fixed))}, which may not be changed")

    @property
    def chunks_topic(self) -> str:
        """Of messages about chunks that have not failed."""
        return f"{self.topic}.chunks"

    @property
    def retry_topic(self) -> str:
        """Of messages about chunks that have."""
        return f"{self.topic}.retry"

    @property
    def retry_group(self) -> str:
        """Of who reads the topic of those that have."""
        return f"{self.group}.retry"

    @property
    def dead_topic(self) -> str:
        """Of dead letters."""
        return f"{self.topic}.dead"
