"""The cache of one process, in its own memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

# what the interpreter needs for an entry beside the text of its key and its value: two objects'
# heads, the tuple, the deadline and the place in the table
_OVERHEAD_BYTES: Final = 350


class MemoryCacheSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="memory",
):  # fmt: skip
    """A cache in this process, for itself alone."""

    #: Entries kept; the one that was not used for longest goes first.
    max_entries: int = 10_000
    #: Bytes kept, keys and values and what an entry itself needs.
    max_bytes: int = 32_000_000

    def __post_init__(self) -> None:
        if self.max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {self.max_entries}")
        if self.max_bytes < _OVERHEAD_BYTES:
            raise ValueError(f"max_bytes must be at least {_OVERHEAD_BYTES}, got {self.max_bytes}")


class MemoryCache:
    """The port `Cache` as a table bounded by entries and bytes. It always answers.

    `clock` answers seconds that only grow. Used from one event loop.
    """

    def __init__(
        self, settings: MemoryCacheSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What the entries take, as `max_bytes` counts it."""
        return self._size_bytes

    async def get(self, key: str) -> bytes | None:
        return self._live(key)

    async def add(self, key: str, value: bytes, ttl_s: float) -> bool:
        if self._live(key) is not None:
            return False
        return self._keep(key, value, ttl_s)

    async def replace(self, keys: Sequence[str], value: bytes, ttl_s: float) -> None:
        for key in keys:
            self._keep(key, value, ttl_s)

    async def ping(self) -> None:
        """Memory is there."""

    async def close(self) -> None:
        self._entries.clear()
        self._size_bytes = 0

    def _live(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, until = entry
        if until <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    def _keep(self, key: str, value: bytes, ttl_s: float) -> bool:
        self._drop(key)
        size = _size_bytes(key, value)
        if size > self._settings.max_bytes:  # it would push out everything, and then itself
            return False
        self._entries[key] = (value, self._clock() + ttl_s)
        self._size_bytes += size
        while (
            len(self._entries) > self._settings.max_entries
            or self._size_bytes > self._settings.max_bytes
        ):
            oldest, (old, _) = self._entries.popitem(last=False)
            self._size_bytes -= _size_bytes(oldest, old)
        return True

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size_bytes -= _size_bytes(key, entry[0])


def _size_bytes(key: str, value: bytes) -> int:
    return len(key) + len(value) + _OVERHEAD_BYTES
