"""One member of the consumer group, on a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from headrace.adapters.kafka.client import client_options, reason
from headrace.adapters.kafka.delivery import KafkaDelivery, Partition
from headrace.adapters.kafka.quiet import Quiet
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.adapters.kafka.topics import ensure_topics

_logger = logging.getLogger(__name__)
_POLL_S: Final = 0.1  # a message ends the wait; how late the rest is seen
_POLL_FULL_S: Final = 0.01  # the end of a message in hand does not end the wait
_HEARTBEAT_MS: Final = 1000
_LAG_EVERY_S: Final = 5.0
_LAG_ANSWER_S: Final = 0.5  # for which no message is taken, at worst
_SETTLED_S: Final = 1.0  # a group that deals out its partitions anew is not held up by it
_SESSIONS_FAILING: Final = 2  # session timeouts in which no commit was taken
_SESSIONS_IDLE: Final = 6  # session timeouts without a partition
_IDLE_S: Final = 30.0
_LOOK_S: Final = 5.0  # for the topics; whoever closes meanwhile waits for it

_Name: TypeAlias = tuple[str, int]


class _StandsStill(Exception):
    """The group has long taken no part of this member's: a new consumer joins anew."""


class Counts(Protocol):
    """What members count, for whoever looks."""

    commits: int
    commit_failures: int
    rebalances: int

    @property
    def in_hand(self) -> int:
        """Messages that are in hand, of all members of this process."""
        ...


class Member:
    """Takes messages of a topic and hands them to `deliver`, until it is closed.

    Everything but `close` and what deliveries do happens on its thread. Once `max_in_hand` messages
    are in the process's hands its partitions are paused, and it goes on polling, so that it stays a
    member however long the work takes.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        topic: str,
        group: str,
        instance_id: str,
        deliver: Callable[[KafkaDelivery], None],
        counts: Counts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.partitions = 0
        self.lag = 0
        self._settings = settings
        self.topic = topic
        self._group = group
        self._instance_id = instance_id
        self._deliver = deliver
        self._counts = counts
        self._clock = clock
        self._log = Quiet("consumer", clock=clock)
        self._unreadable = Quiet("message", clock=clock)  # apart: not kept back by other news
        self._mine: dict[_Name, Partition] = {}
        self._consumer: Consumer | None = None
        self._paused = False
        self._commit_at = 0.0
        self._lag_at = 0.0
        self._failing_since = math.inf  # since when no commit was taken
        self._idle_since = math.inf  # since when there is no partition for this member
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)

    @property
    def in_hand(self) -> int:
        """Messages that are delivered, not done and not revoked."""
        return sum(partition.in_hand for partition in list(self._mine.values()))

    def start(self) -> None:
        """Join the group, and again whenever it has to be."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Commit what is done and leave. Blocks until then, or for `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _logger.warning("Kafka did not let this process go within %g s", timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._take_part()
            except KafkaException as error:
                self._log.log(logging.WARNING, "%s", reason(error))
            except _StandsStill as error:
                _logger.warning("%s: this process joins the group anew", error)
            except Exception:  # the root of a thread
                _logger.exception("Kafka's consumer failed")
            self._closing.wait(self._settings.retry_s)

    def _take_part(self) -> None:
        """Be a member until this process closes, or until this consumer cannot go on."""
        ensure_topics(self._settings, timeout_s=_LOOK_S)
        consumer = Consumer(self._options(), logger=self._log)
        self._consumer = consumer
        self._paused = False
        self._failing_since, self._idle_since = math.inf, self._clock()
        try:
            consumer.subscribe(
                [self.topic],
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
            while not self._closing.is_set():
                self._hold_back()
                record = consumer.poll(_POLL_FULL_S if self._paused else _POLL_S)
                if record is not None:
                    self._take(record)
                self._commit()
                self._measure()
                self._check_standing()
        finally:
            # commits what is done by way of `_revoked`, and leaves
            consumer.close()
            self._forget(list(self._mine))
            self._consumer = None

    def _options(self) -> dict[str, object]:
        settings = self._settings
        static = {"group.instance.id": self._instance_id} if self._instance_id else {}
        session_ms = max(int(settings.session_timeout_s * 1000), 1)
        return {
            # bounds what is read ahead; by a number of messages it would be read no more for a
            # second, whenever so many were there
            "queued.max.messages.kbytes": 4096,
            "fetch.message.max.bytes": 64 * 1024,
            "fetch.queue.backoff.ms": 10,
            # a partition that is resumed is asked for when the last request is answered, which
            # waits so long for others
            "fetch.wait.max.ms": 50,
            # a member hears with it that partitions move
            "heartbeat.interval.ms": min(max(session_ms // 4, 1), _HEARTBEAT_MS),
            **client_options(settings),
            **static,
            "group.id": self._group,
            "session.timeout.ms": session_ms,
            "partition.assignment.strategy": "cooperative-sticky",
            "auto.offset.reset": "earliest",  # nothing is skipped where an offset was forgotten
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "on_commit": self._committed,
            "error_cb": lambda error: self._log.log(logging.WARNING, "%s", reason(error)),
        }

    # --- messages ------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        error = record.error()
        if error is not None:
            if error.fatal() or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(error)  # a new consumer, after a look at the topics
            self._log.log(logging.WARNING, "%s", reason(error))
            return
        name = _name(record)
        partition = self._mine.get(name)
        offset = record.offset()
        if partition is None or offset is None:
            return  # of one that is another's by now, who is given it too
        delivery = partition.delivered(offset, record.value() or b"")
        if delivery.message is None:
            self._unreadable.log(
                logging.WARNING,
                "topic %s, partition %d, offset %d cannot be read: %s. It is for %s",
                *name, offset, delivery.problem, self._settings.dead_topic,
            )  # fmt: skip
        self._deliver(delivery)

    def _hold_back(self) -> None:
        assert self._consumer is not None  # noqa: S101 - for the type checker
        full = self._counts.in_hand >= self._settings.max_in_hand
        if full == self._paused:
            return
        mine = [TopicPartition(*name) for name in self._mine]
        (self._consumer.pause if full else self._consumer.resume)(mine)
        self._paused = full

    # --- offsets -------------------------------------------------------------------------------

    def _commit(self) -> None:
        assert self._consumer is not None  # noqa: S101 - for the type checker
        now = self._clock()
        if now < self._commit_at:
            return
        offsets = self._uncommitted(self._mine)
        if not offsets:
            return
        self._commit_at = now + self._settings.commit_interval_s
        self._consumer.commit(offsets=offsets, asynchronous=True)
        for offset in offsets:
            self._mine[_name(offset)].sent = offset.offset

    def _committed(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        failed = [offset for offset in offsets if error is not None or offset.error is not None]
        if not failed:
            self._counts.commits += 1
            self._failing_since = math.inf
            return
        self._counts.commit_failures += 1
        self._failing_since = min(self._failing_since, self._clock())
        why = error or failed[0].error
        self._log.log(logging.WARNING, "offsets were not committed: %s", why and reason(why))
        for offset in failed:
            partition = self._mine.get(_name(offset))
            if partition is not None:
                partition.sent = None  # once more, in a while

    def _uncommitted(self, names: Sequence[_Name] | dict[_Name, Partition]) -> list[TopicPartition]:
        found = []
        for name in names:
            partition = self._mine.get(name)
            if partition is None:
                continue
            offset = partition.committable
            if offset is not None and offset != partition.sent:
                found.append(TopicPartition(*name, offset))
        return found

    def _check_standing(self) -> None:
        """Notice a member that the group has forgotten, which librdkafka does not always."""
        now = self._clock()
        session_s = self._settings.session_timeout_s
        if self._mine:
            self._idle_since = now
        if now - self._failing_since > _SESSIONS_FAILING * session_s:
            raise _StandsStill("no offsets could be committed for long")
        # also where there are more members than partitions: to join anew costs them little
        if now - self._idle_since > max(_SESSIONS_IDLE * session_s, _IDLE_S):
            raise _StandsStill("there was no partition for this process for long")

    # --- partitions, by the group's leader -------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._counts.rebalances += 1
        for partition in partitions:
            self._mine[_name(partition)] = Partition(*_name(partition))
        self.partitions = len(self._mine)
        self._lag_at = self._clock() + _SETTLED_S
        consumer.incremental_assign(list(partitions))
        # one that was here before may still be paused, or not any more
        (consumer.pause if self._paused else consumer.resume)(list(partitions))

    def _revoked(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._counts.rebalances += 1
        names = [_name(partition) for partition in partitions]
        for name in names:
            if name in self._mine:
                self._mine[name].revoke()  # first: what is done from here on is not committed
        offsets = self._uncommitted(names)
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:  # they come again: that does no harm
                self._counts.commit_failures += 1
                self._log.log(logging.WARNING, "offsets were not committed: %s", reason(error))
            else:
                self._counts.commits += 1
        self._forget(names)

    def _lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        del consumer
        self._counts.rebalances += 1
        self._forget([_name(partition) for partition in partitions])

    def _forget(self, names: Sequence[_Name]) -> None:
        for name in names:
            partition = self._mine.pop(name, None)
            if partition is not None:
                partition.revoke()
        self.partitions = len(self._mine)
        if not self._mine:
            self.lag = 0

    # --- how far behind ------------------------------------------------------------------------

    def _measure(self) -> None:
        now = self._clock()
        if now < self._lag_at:
            return
        self._lag_at = now + _LAG_EVERY_S
        with contextlib.suppress(KafkaException):  # who does not answer is told of elsewhere
            self.lag = self._behind()

    def _behind(self) -> int:
        """Messages that are not done. Raises KafkaException.

        Brokers are asked: what is known here of a partition is as old as what was last read of it,
        and while this process's hands are full nothing is.
        """
        assert self._consumer is not None  # noqa: S101 - for the type checker
        new = [TopicPartition(*name) for name, mine in self._mine.items() if mine.found is None]
        if new:
            for found in self._consumer.committed(new, timeout=_LAG_ANSWER_S):
                self._mine[_name(found)].found = found.offset
        lag = 0
        for name, mine in self._mine.items():
            first, end = self._consumer.get_watermark_offsets(
                TopicPartition(*name), timeout=_LAG_ANSWER_S
            )
            begin = mine.committable
            if begin is None:
                begin = mine.found or 0
            lag += max(end - max(begin, first), 0)
        return lag


def _name(of: TopicPartition | Record) -> _Name:
    if isinstance(of, TopicPartition):
        return of.topic, of.partition
    return of.topic() or "", of.partition() or 0
