"""What is in hand of a partition, as long as it is this process's."""

from __future__ import annotations

import threading

from headrace.adapters.kafka.offsets import Offsets
from headrace.adapters.kafka.wire import Unreadable, decode
from headrace.ports.job_queue import Message


class Partition:
    """One assignment of a partition. Workers and the consumer's thread both use it.

    When the partition is back after it was revoked, that is another assignment: what is in hand of
    the first changes nothing in the second.
    """

    def __init__(self, topic: str, number: int) -> None:
        self.revoked = False
        self.in_hand = 0
        self.sent: int | None = None  # the offset that was committed last, or is about to be
        self.found: int | None = None  # what was committed before; below 0: nothing
        self._where = f"{topic}/{number}"
        self._offsets = Offsets()
        self._lock = threading.Lock()

    @property
    def committable(self) -> int | None:
        """The offset to begin at again; None: nothing was delivered."""
        with self._lock:
            return self._offsets.committable

    def delivered(self, offset: int, raw: bytes) -> KafkaDelivery:
        """A message for somebody to work on."""
        with self._lock:
            if self._offsets.committable is None:
                self.sent = offset  # it is where this began: nothing is done yet
            self._offsets.delivered(offset)
            self.in_hand += 1
        return KafkaDelivery(self, offset, raw, f"{self._where}/{offset}")

    def done(self, offset: int) -> None:
        """Nothing happens where it is another's by now."""
        with self._lock:
            if self.revoked:
                return
            self._offsets.done(offset)
            self.in_hand -= 1

    def revoke(self) -> None:
        """From here on nothing about it is done."""
        with self._lock:
            self.revoked = True
            self.in_hand = 0


class KafkaDelivery:
    """One message of an assignment."""

    __slots__ = ("_done", "_offset", "_partition", "message", "problem", "raw", "source")

    def __init__(self, partition: Partition, offset: int, raw: bytes, source: str) -> None:
        self.message: Message | None = None
        self.problem = ""  # why it cannot be read
        try:
            self.message = decode(raw)
        except Unreadable as error:
            self.problem = str(error)
        self.raw = raw
        self.source = source
        self._partition = partition
        self._offset = offset
        self._done = False

    @property
    def revoked(self) -> bool:
        return self._partition.revoked

    def done(self) -> None:
        if not self._done:
            self._done = True
            self._partition.done(self._offset)
