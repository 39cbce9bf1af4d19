"""The cache that processes share, in Redis or Valkey."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast

from headrace.adapters.redis.connection import Connection, Unanswered
from headrace.adapters.redis.settings import RedisCacheSettings
from headrace.domain.errors import CacheUnavailable

_T = TypeVar("_T")
_CHUNK: Final = 500  # commands sent at once, so that a long list still answers within the timeout
_MIN_TTL_S: Final = 0.001  # Redis counts in milliseconds, and refuses 0


class RedisCache:
    """The port `Cache` on Redis. `clock` answers seconds that only grow.

    Raises:
        InvalidSettings: from the constructor, where the URL cannot be read.
    """

    def __init__(
        self, settings: RedisCacheSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._connection = Connection(
            url=settings.url,
            max_connections=settings.max_connections,
            timeout_s=settings.timeout_s,
            retry_s=settings.retry_s,
            instead="the store is asked",
            clock=clock,
        )
        self._redis = self._connection.redis

    @property
    def gone(self) -> bool:
        """Whether the last that was heard of Redis is that it does not answer."""
        return self._connection.gone

    async def get(self, key: str) -> bytes | None:
        # bytes, as nothing is decoded
        return cast("bytes | None", await self._ask(lambda: self._redis.get(self._key(key))))

    async def add(self, key: str, value: bytes, ttl_s: float) -> bool:
        kept = await self._ask(
            lambda: self._redis.set(self._key(key), value, px=_milliseconds(ttl_s), nx=True)
        )
        return bool(kept)

    async def replace(self, keys: Sequence[str], value: bytes, ttl_s: float) -> None:
        for start in range(0, len(keys), _CHUNK):
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys[start : start + _CHUNK]:
                pipeline.set(self._key(key), value, px=_milliseconds(ttl_s))
            await self._ask(pipeline.execute)

    async def ping(self) -> None:
        await self._ask(self._redis.ping)

    async def close(self) -> None:
        await self._connection.close()

    def _key(self, key: str) -> bytes:
        # what UTF-8 cannot hold is still a key of its own
        return (self._settings.prefix + key).encode("utf-8", "surrogatepass")

    async def _ask(self, command: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await self._connection.ask(command)
        except Unanswered as error:
            raise CacheUnavailable(str(error)) from error


def _milliseconds(ttl_s: float) -> int:
    return round(max(ttl_s, _MIN_TTL_S) * 1000)
