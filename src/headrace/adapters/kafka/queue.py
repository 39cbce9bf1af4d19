"""The job queue of many processes: topics that a group of them reads, and one of dead letters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from headrace.adapters.kafka.client import check_options
from headrace.adapters.kafka.consumer import Member
from headrace.adapters.kafka.delivery import KafkaDelivery
from headrace.adapters.kafka.publisher import Outgoing, Publisher
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.adapters.kafka.wire import encode, encode_letter, key
from headrace.ports.job_queue import DeadLetter, Delivery, Message

_CLOSE_S: Final = 10.0


class KafkaQueue:
    """The port `JobQueue` on Kafka.

    A process joins the group when it takes for the first time: one that only publishes is given no
    partitions, which it would leave lying.

    Raises:
        InvalidSettings: from the constructor, where librdkafka does not know an option.
    """

    shared = True

    def __init__(self, settings: KafkaSettings) -> None:
        self.published = 0
        self.buried = 0
        self.taken = 0
        self.commits = 0
        self.commit_failures = 0
        self.rebalances = 0
        check_options(settings)
        self._settings = settings
        self._publisher = Publisher(settings)
        self._members: list[Member] = []
        self._inbox: asyncio.Queue[KafkaDelivery] = asyncio.Queue()
        self._closed = False

    @property
    def members(self) -> Sequence[Member]:
        """One for each topic that is read; none before this process takes for the first time."""
        return self._members

    @property
    def in_hand(self) -> int:
        """Messages that were delivered to this process and are not done."""
        return sum(member.in_hand for member in self._members)

    @property
    def partitions(self) -> int:
        """Those that are this process's, of both topics."""
        return sum(member.partitions for member in self._members)

    async def publish(self, messages: Sequence[Message]) -> None:
        settings = self._settings
        await self._publisher.send(
            [
                Outgoing(
                    settings.retry_topic if message.failures else settings.chunks_topic,
                    key(message.ref, message.attempt),
                    encode(message),
                )
                for message in messages
            ]
        )
        self.published += len(messages)

    async def take(self) -> Delivery:
        if not (self._members or self._closed):
            self._join(asyncio.get_running_loop())
        while True:
            delivery = await self._inbox.get()
            if not delivery.revoked:
                self.taken += 1
                return delivery

    async def bury(self, letter: DeadLetter) -> None:
        whose = letter.source.encode() if letter.ref is None else key(letter.ref)
        letters = [Outgoing(self._settings.dead_topic, whose, encode_letter(letter))]
        await self._publisher.send(letters)
        self.buried += 1

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()  # the clients' threads keep it

    async def close(self) -> None:
        self._closed = True
        closing = [asyncio.to_thread(member.close, _CLOSE_S) for member in self._members]
        await asyncio.gather(*closing)
        await asyncio.to_thread(self._publisher.close, _CLOSE_S)

    def _join(self, loop: asyncio.AbstractEventLoop) -> None:
        def deliver(delivery: KafkaDelivery) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it comes again elsewhere
                loop.call_soon_threadsafe(self._inbox.put_nowait, delivery)

        # each topic by a group of its own: one that reads both is dealt their partitions together,
        # and the first process then keeps those of the one, and the second has those of the other
        settings, id_ = self._settings, self._settings.instance_id
        self._members = [
            Member(
                settings, topic=topic, group=group, instance_id=instance_id, deliver=deliver,
                counts=self,
            )
            for topic, group, instance_id in (
                (settings.chunks_topic, settings.group, id_),
                (settings.retry_topic, settings.retry_group, id_ and f"{id_}.retry"),
            )
        ]  # fmt: skip
        for member in self._members:
            member.start()
