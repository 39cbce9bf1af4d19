"""News of chunks to work on, delivered at least once to one of the group that works on them.

A queue carries references only: what is to be done is in the job store, which also says whether a
message is news. So messages are small whatever a row is, and one that comes twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from headrace.domain.chunks import ChunkRef


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """That a chunk waits."""

    ref: ChunkRef
    failures: int = 0  # how often working on it has failed: such messages go a way of their own
    attempt: int = 0  # how often it was claimed: by others than before, where a queue has several


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is given up, and why."""

    reason: str
    ref: ChunkRef | None = None  # None where the message could not be read
    raw: bytes = b""  # as it came, where it could not be read
    source: str = ""  # where it came from, as topic/partition/offset
    story: tuple[str, ...] = ()


class Delivery(Protocol):
    """One message in this process's hands."""

    @property
    def message(self) -> Message | None:
        """None where it cannot be read: it is for the dead letters."""
        ...

    @property
    def raw(self) -> bytes:
        """As it came."""
        ...

    @property
    def source(self) -> str:
        """Where it came from, as topic/partition/offset."""
        ...

    @property
    def revoked(self) -> bool:
        """Whether it was given to another since; whoever works on it stops."""
        ...

    def done(self) -> None:
        """It needs not be delivered again. Never raises; nothing happens where it is revoked.

        What is delivered in order is forgotten in order: not before all that came ahead are done.
        """
        ...


class JobQueue(Protocol):
    """Every method raises StoreUnavailable where the queue does not answer."""

    #: Whether what one process publishes is taken by others too.
    shared: bool

    async def publish(self, messages: Sequence[Message]) -> None:
        """Hand messages in; they are safe when it returns."""
        ...

    async def take(self) -> Delivery:
        """The next message, when there is one. Whoever takes no more is given no more."""
        ...

    async def bury(self, letter: DeadLetter) -> None:
        """Put a message where somebody looks at it; it is safe when it returns."""
        ...

    async def run(self) -> None:
        """Keep the connection. Never returns; runs beside the rest."""
        ...

    async def close(self) -> None:
        """Leave the group, so that others take over at once."""
        ...
