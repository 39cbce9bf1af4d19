"""What every client of Kafka here is told."""

from __future__ import annotations

import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from headrace.adapters.kafka.quiet import Quiet
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.domain.errors import InvalidSettings

_WARNING: Final = 4  # of syslog, and what is worse


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of librdkafka that do not depend on what the client does."""
    return {
        "bootstrap.servers": settings.brokers,
        "client.id": settings.client_id,
        "log_level": _WARNING,
        "socket.keepalive.enable": True,
        # a broker that is back is found soon
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "log.connection.close": False,  # brokers close idle connections; that is no news
        **settings.options,
    }


def reason(error: KafkaException | KafkaError) -> str:
    """What is wrong, in a few words."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return inner.str() if isinstance(inner, KafkaError) else str(inner)


def check_options(settings: KafkaSettings) -> None:
    """See that librdkafka takes the options, before anything depends on it.

    Raises:
        InvalidSettings: it does not know one, or not that value.
    """
    try:
        # nobody asks for what its log says, or for more of it than that it can be made
        Producer(client_options(settings), logger=Quiet("options", clock=time.monotonic))
    except KafkaException as error:
        raise InvalidSettings(f"the options of Kafka: {reason(error)}") from error
