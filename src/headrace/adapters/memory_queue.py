"""The queue of one process: what it publishes it takes itself, and it ends with the process.

That loses no work: the job store knows which chunks were queued, and they are queued anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.domain.chunks import ChunkRef
from headrace.ports.job_queue import DeadLetter, Delivery, Message

_logger = logging.getLogger(__name__)
#: Of so many messages that are taken one may be of those that failed, while fresh ones wait.
_TURN: Final = 8
_LETTERS: Final = 1000
_SOURCE: Final = "memory"


class MemoryQueueSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="memory",
):  # fmt: skip
    """A queue within this process: its own workers work on the chunks that it queues."""


class MemoryQueue:
    """The port `JobQueue` in memory. How much it holds is bounded by who publishes."""

    shared = False

    def __init__(self) -> None:
        self.letters: deque[DeadLetter] = deque(maxlen=_LETTERS)  # the last ones
        self._fresh: deque[Message] = deque()
        self._failed: deque[Message] = deque()
        self._there: asyncio.Queue[None] = asyncio.Queue()  # as many as both hold together
        self._taken = 0

    async def publish(self, messages: Sequence[Message]) -> None:
        for message in messages:
            (self._failed if message.failures else self._fresh).append(message)
            self._there.put_nowait(None)

    async def take(self) -> Delivery:
        await self._there.get()
        self._taken += 1
        # what failed does not delay what is fresh, and is not forgotten over it
        if self._failed and (not self._fresh or self._taken % _TURN == 0):
            return _MemoryDelivery(self._failed.popleft())
        return _MemoryDelivery(self._fresh.popleft())

    async def bury(self, letter: DeadLetter) -> None:
        self.letters.append(letter)
        _logger.warning("%s is given up: %s", _name(letter.ref), letter.reason)

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()  # there is no connection to keep

    async def close(self) -> None:
        """Nobody else waits for what this process leaves."""


class _MemoryDelivery:
    """Nothing is kept of what was taken, and nobody else can be given it."""

    __slots__ = ("message",)

    raw = b""
    source = _SOURCE
    revoked = False

    def __init__(self, message: Message) -> None:
        self.message = message

    def done(self) -> None:
        """It was forgotten when it was taken."""


def _name(ref: ChunkRef | None) -> str:
    return "an unreadable message" if ref is None else f"chunk {ref.index} of job {ref.job}"
