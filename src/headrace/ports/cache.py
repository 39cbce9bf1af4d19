"""Bytes that are kept for a while, in this process or beside several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Cache(Protocol):
    """A cache shared by all who use the same one. Values may vanish at any time.

    Every method raises CacheUnavailable where the cache does not answer.
    """

    async def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""
        ...

    async def add(self, key: str, value: bytes, ttl_s: float) -> bool:
        """Keep a value unless the key has one already; whether it was kept."""
        ...

    async def replace(self, keys: Sequence[str], value: bytes, ttl_s: float) -> None:
        """Keep `value` under each key, whatever was there."""
        ...

    async def ping(self) -> None:
        """Ask whether it answers."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
