"""A process that takes part in a consumer group, tells what it takes, and is killed by a test.

    python member.py BROKERS TOPIC GROUP SESSION_S

It prints a line `job index` for each message, and is never done with any.
"""

from __future__ import annotations

import asyncio
import sys

from headrace.adapters.kafka.queue import KafkaQueue
from headrace.adapters.kafka.settings import KafkaSettings


async def main(brokers: str, topic: str, group: str, session_s: str) -> None:
    settings = KafkaSettings(
        brokers=brokers, topic=topic, group=group, session_timeout_s=float(session_s)
    )
    queue = KafkaQueue(settings)
    while True:
        message = (await queue.take()).message
        assert message is not None
        print(message.ref.job, message.ref.index, flush=True)  # noqa: T201 - it is what is asked for


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
