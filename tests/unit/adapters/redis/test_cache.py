"""What needs no Redis; the rest is in tests/conformance/cache and tests/integration."""

from __future__ import annotations

import msgspec
import pytest

from headrace.adapters.memory_cache import MemoryCacheSettings
from headrace.adapters.redis.cache import RedisCache
from headrace.adapters.redis.settings import RedisCacheSettings
from headrace.domain.errors import CacheUnavailable, InvalidSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://localhost"},
        {"url": "redis://localhost?decode_responses=yes"},
        {"timeout_s": 0},
        {"retry_s": -1.0},
        {"max_connections": 0},
        {"host": "x"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "redis", **wrong}, RedisCacheSettings)


async def test_a_url_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as refused:
        RedisCache(RedisCacheSettings(url="redis://:hunter2@host:port/0"))
    assert "hunter2" not in str(refused.value)


async def test_a_password_is_in_no_message() -> None:
    cache = RedisCache(RedisCacheSettings(url="redis://me:hunter2@127.0.0.1:1/0"))
    with pytest.raises(CacheUnavailable) as gone:
        await cache.ping()
    await cache.close()
    assert "127.0.0.1" in gone.value.message
    assert "hunter2" not in gone.value.message


def test_the_kind_chooses_the_cache() -> None:
    either = RedisCacheSettings | MemoryCacheSettings
    assert msgspec.convert({"kind": "redis"}, either) == RedisCacheSettings()
    assert msgspec.convert({"kind": "memory"}, either) == MemoryCacheSettings()
