"""Bytes by key: the files of batch jobs and the parts that they are made of.

Keys are paths without a leading slash. An object is there whole or not at all. Every method raises
StoreUnavailable where the store does not answer; what writes, StorageFull where there is no room.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol


class ObjectStore(Protocol):
    """One place for objects."""

    async def put(self, key: str, data: bytes) -> None:
        """Write a small object once.

        Raises:
            AlreadyExists: there is another, which stays as it is. The same bytes may be put again.
        """
        ...

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        """Write what comes, in bounded memory; its size. What is there is replaced.

        Raises:
            PayloadTooLarge: it is over the limit; nothing of it is kept.
        """
        ...

    async def join(self, key: str, parts: Sequence[str]) -> int:
        """Write the bytes of objects one behind the other, in bounded memory; their size.

        What is there is replaced. Raises NotFound where a part is gone.
        """
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in order.

        Raises:
            NotFound.
            StoreUnavailable: it was replaced meanwhile, and the store tells.
        """
        ...

    async def size(self, key: str) -> int:
        """Bytes of an object. Raises NotFound."""
        ...

    def keys(self, prefix: str, *, older_than_s: float) -> AsyncGenerator[Sequence[str], None]:
        """Keys of all objects below a prefix, which ends with a slash, that are so old: in pages.

        No page is empty, and none has more than a thousand, in whatever order. A store may count
        an object's age from when its upload began. What comes or goes meanwhile may be among them.
        """
        ...

    async def remove(self, key: str) -> None:
        """Remove an object, or all below a key that ends with a slash; harmless if not there."""
        ...

    async def presigned(self, key: str, expires_s: int) -> str | None:
        """A URL at which anybody may read the object for a while; None where there are none."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
