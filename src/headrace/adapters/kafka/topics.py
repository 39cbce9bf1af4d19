"""Makes sure that the topics are there: what is asked of a missing one fails without a reason."""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from headrace.adapters.kafka.client import client_options
from headrace.adapters.kafka.quiet import Quiet
from headrace.adapters.kafka.settings import KafkaSettings

_BROKERS_DEFAULT: Final = -1


def ensure_topics(settings: KafkaSettings, *, timeout_s: float) -> None:
    """Create the topics that are missing. Blocks.

    Raises:
        KafkaException: brokers do not answer, or refuse to create a topic.
    """
    log = Quiet("topics", clock=time.monotonic)
    admin = AdminClient(client_options(settings), logger=log)
    deadline = time.monotonic() + timeout_s
    there = admin.list_topics(timeout=timeout_s).topics
    missing = [
        NewTopic(
            name,
            num_partitions=settings.partitions,
            replication_factor=settings.replication_factor or _BROKERS_DEFAULT,
        )
        for name in (settings.chunks_topic, settings.retry_topic, settings.dead_topic)
        if name not in there
    ]
    if not missing:
        return
    left_s = max(deadline - time.monotonic(), 0.1)
    for made in admin.create_topics(missing, request_timeout=left_s).values():
        try:
            made.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # by another, just now
                raise
