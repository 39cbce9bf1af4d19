"""The cache that processes share, in Redis or Valkey.

A Redis that does not answer costs whoever asks at that moment `timeout_s`, once. From then on the
cache is gone and says so without waiting; one call at a time looks whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from headrace.adapters.redis.settings import RedisCacheSettings
from headrace.domain.errors import CacheUnavailable, InvalidSettings

_logger = logging.getLogger(__name__)
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
        self._clock = clock
        self._retry_at: float | None = None  # None while Redis answers
        self._looking = False
        self._why = ""
        try:
            pool = BlockingConnectionPool.from_url(
                settings.url,
                max_connections=settings.max_connections,
                timeout=None,  # the one deadline below covers the wait for a connection too
                socket_timeout=None,
                socket_connect_timeout=None,
                # a second try would cost a second timeout; the store answers sooner
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # answers are plain, and nothing is pushed that nobody listens to
            )
        except ValueError as error:  # its text may hold the password
            raise InvalidSettings("the cache's url is not a Redis URL") from error
        self._redis: Redis = Redis(connection_pool=pool)
        kwargs = pool.connection_kwargs
        # never the URL: it may hold a password
        self._name = f"Redis at {kwargs.get('path') or kwargs.get('host', 'localhost')}"

    @property
    def gone(self) -> bool:
        """Whether the last that was heard of Redis is that it does not answer."""
        return self._retry_at is not None

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
        await self._redis.aclose(close_connection_pool=True)

    def _key(self, key: str) -> bytes:
        # what UTF-8 cannot hold is still a key of its own
        return (self._settings.prefix + key).encode("utf-8", "surrogatepass")

    async def _ask(self, command: Callable[[], Awaitable[_T]]) -> _T:
        look = self._retry_at is not None
        if look and (self._looking or self._clock() < (self._retry_at or 0.0)):
            raise CacheUnavailable(f"{self._name} is gone: {self._why}")
        if look:
            self._looking = True
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await command()
        except ResponseError as error:  # it answers, and refuses this: no reason to turn away
            self._back()
            raise CacheUnavailable(f"{self._name} refused a command: {error}") from error
        except TimeoutError as error:
            self._lost(f"no answer within {self._settings.timeout_s:g} s")
            raise CacheUnavailable(f"{self._name}: {self._why}") from error
        except (RedisError, OSError) as error:
            self._lost(str(error))
            raise CacheUnavailable(f"{self._name}: {self._why}") from error
        finally:
            if look:
                self._looking = False
        self._back()
        return answer

    def _lost(self, why: str) -> None:
        if self._retry_at is None:
            _logger.warning("%s is gone: %s; the store is asked instead", self._name, why)
        self._why = why
        self._retry_at = self._clock() + self._settings.retry_s

    def _back(self) -> None:
        if self._retry_at is not None:
            _logger.warning("%s answers again", self._name)
            self._retry_at = None


def _milliseconds(ttl_s: float) -> int:
    return round(max(ttl_s, _MIN_TTL_S) * 1000)
