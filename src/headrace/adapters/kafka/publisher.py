"""Hands messages to the brokers, and knows when they have them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Record

from headrace.adapters.kafka.client import client_options, reason
from headrace.adapters.kafka.quiet import Quiet
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.adapters.kafka.topics import ensure_topics
from headrace.domain.errors import StoreUnavailable

_logger = logging.getLogger(__name__)
_POLL_S: Final = 0.2  # how late the thread sees that it is to end
_RETRY_AFTER_S: Final = 1.0


class Outgoing:
    """One record: where to, and what."""

    __slots__ = ("key", "topic", "value")

    def __init__(self, topic: str, key: bytes, value: bytes) -> None:
        self.topic = topic
        self.key = key
        self.value = value


class Publisher:
    """A producer, and a thread that hears what became of what was sent."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._thread: threading.Thread | None = None
        self._ready: asyncio.Task[None] | asyncio.Future[None] | None = None
        self._closing = threading.Event()

    async def send(self, records: Sequence[Outgoing]) -> None:
        """Return when every record is acknowledged by all copies that are in step.

        Raises:
            StoreUnavailable: not all of them within the time; some may be there none the less.
        """
        if not records:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.publish_timeout_s
        await self._open(loop)
        assert self._producer is not None  # noqa: S101 - for the type checker
        receipt = _Receipt(loop, len(records))
        expiry = loop.call_at(deadline, receipt.fail, "no acknowledgement in time")
        try:
            for record in records:
                self._producer.produce(
                    record.topic, record.value, record.key, on_delivery=receipt.delivered
                )
            await receipt.answer
        except BufferError as error:
            raise _unavailable("too much waits to be sent") from error
        except KafkaException as error:
            raise _unavailable(reason(error)) from error
        finally:
            expiry.cancel()

    def close(self, timeout_s: float) -> None:
        """Send what is on its way, and end. Blocks."""
        self._closing.set()
        if self._producer is not None:
            self._producer.flush(timeout_s)
        if self._thread is not None:
            self._thread.join(timeout_s)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        """See once that there are topics, together with whoever else is waiting for it."""
        if self._closing.is_set():
            raise _unavailable("the queue of this process is closed")
        if self._ready is None:
            # a thread of its own for as long as it takes: nothing here may hold up the loop
            self._ready = loop.run_in_executor(None, self._connect)
        ready = self._ready
        try:
            await asyncio.shield(ready)
        except KafkaException as error:
            if self._ready is ready:
                self._ready = None  # the next one looks again
            raise _unavailable(reason(error)) from error

    def _connect(self) -> None:
        ensure_topics(self._settings, timeout_s=self._settings.publish_timeout_s)
        log = Quiet("producer", clock=time.monotonic)
        timeout_ms = max(int(self._settings.publish_timeout_s * 1000), 1)
        self._producer = Producer(
            {
                "linger.ms": 1,
                "request.timeout.ms": timeout_ms,
                **client_options(self._settings),
                "enable.idempotence": True,  # none doubled or reordered by the producer's retries
                "acks": "all",
                "message.timeout.ms": timeout_ms,
            },
            logger=log,
            error_cb=lambda error: log.log(logging.WARNING, "%s", reason(error)),
        )
        self._thread = threading.Thread(target=self._listen, name="kafka-producer", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._producer is not None  # noqa: S101 - for the type checker
        while not self._closing.is_set():
            try:
                self._producer.poll(_POLL_S)
            except Exception:  # the root of a thread: whoever waits is told by its deadline
                _logger.exception("a report of Kafka's producer could not be handled")


class _Receipt:
    """Becomes true when all records of one call are acknowledged, or fails with the first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.answer: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._left = count

    def delivered(self, error: KafkaError | None, record: Record) -> None:
        """Called by the producer's thread alone."""
        del record
        self._left -= 1
        if error is not None:
            self._tell(self.fail, reason(error))
        elif self._left == 0:
            self._tell(self._succeed)

    def fail(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(_unavailable(why))

    def _succeed(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(what, *arguments)


def _unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable(f"Kafka took no message: {why}", retry_after_s=_RETRY_AFTER_S)
