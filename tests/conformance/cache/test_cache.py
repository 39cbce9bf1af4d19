"""What every cache does: that of one process, and that of several in Redis or Valkey."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from headrace.adapters.memory_cache import MemoryCache, MemoryCacheSettings
from headrace.adapters.redis.cache import RedisCache
from headrace.adapters.redis.settings import RedisCacheSettings
from headrace.ports.cache import Cache
from tests.support.valkey import Valkey, valkey

LONG_S = 60.0
#: Any characters: what separates, what ends, what is no ASCII, and what is no text.
ODD_KEYS = ("", " ", "a b", "a:b", "a\nb", "a\0b", "ключ", "🌊", "\ud800", "k" * 10_000)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    made: MemoryCache | RedisCache
    if request.param == "memory":
        made = MemoryCache(MemoryCacheSettings())
    else:
        server: Valkey = request.getfixturevalue("server")
        # every test finds it empty; a busy machine is no fault
        prefix = f"{request.node.nodeid}:"
        made = RedisCache(RedisCacheSettings(url=server.url, prefix=prefix, timeout_s=10.0))
    yield made
    await made.close()


async def eventually(condition: Callable[[], Awaitable[Any]]) -> None:
    deadline = time.monotonic() + 10.0
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_set_and_get(cache: Cache) -> None:
    assert await cache.add("a", b"1", LONG_S)
    assert await cache.get("a") == b"1"


async def test_a_cache_miss_is_none(cache: Cache) -> None:
    assert await cache.get("nothing") is None


async def test_a_key_that_has_a_value_keeps_it(cache: Cache) -> None:
    assert await cache.add("a", b"1", LONG_S)
    assert not await cache.add("a", b"2", LONG_S)
    assert await cache.get("a") == b"1"


async def test_delete_puts_something_in_the_place_of_what_was_there(cache: Cache) -> None:
    await cache.add("a", b"1", LONG_S)
    await cache.replace(["a", "b"], b"gone", LONG_S)
    assert await cache.get("a") == await cache.get("b") == b"gone"
    assert not await cache.add("a", b"1", LONG_S)


async def test_values_are_any_bytes(cache: Cache) -> None:
    value = bytes(range(256)) * 100
    await cache.add("a", value, LONG_S)
    await cache.add("empty", b"", LONG_S)
    assert await cache.get("a") == value
    assert await cache.get("empty") == b""


async def test_keys_are_any_text_and_never_meet(cache: Cache) -> None:
    for number, key in enumerate(ODD_KEYS):
        assert await cache.add(key, str(number).encode(), LONG_S)
    kept = [await cache.get(key) for key in ODD_KEYS]
    assert kept == [str(number).encode() for number in range(len(ODD_KEYS))]


async def test_a_value_is_gone_after_its_time(cache: Cache) -> None:
    await cache.add("a", b"1", 0.05)

    async def gone() -> bool:
        return await cache.get("a") is None

    await eventually(gone)
    assert await cache.add("a", b"2", LONG_S)
    assert await cache.get("a") == b"2"


async def test_replacing_begins_a_new_time(cache: Cache) -> None:
    await cache.add("a", b"1", 0.05)
    await cache.add("beside", b"1", 0.05)
    await cache.replace(["a"], b"2", LONG_S)

    async def beside_is_gone() -> bool:
        return await cache.get("beside") is None

    await eventually(beside_is_gone)
    assert await cache.get("a") == b"2"


async def test_a_time_too_short_to_count_is_no_error(cache: Cache) -> None:
    await cache.add("a", b"1", math.ulp(0.0))
    await cache.replace(["b"], b"1", 0.0)


async def test_many_keys_are_replaced_at_once(cache: Cache) -> None:
    keys = [f"k{n}" for n in range(2_345)]
    await cache.replace(keys, b"x", LONG_S)
    assert {await cache.get(key) for key in keys} == {b"x"}


async def test_no_keys_are_nothing_to_replace(cache: Cache) -> None:
    await cache.replace([], b"x", LONG_S)


async def test_of_many_who_add_one_does(cache: Cache) -> None:
    added = await asyncio.gather(*(cache.add("a", bytes([n]), LONG_S) for n in range(50)))
    assert added.count(True) == 1
    kept = await cache.get("a")
    assert kept is not None
    assert added[kept[0]]


async def test_who_is_cancelled_takes_nobodys_answer_along(cache: Cache) -> None:
    for n in range(20):
        await cache.add(f"k{n}", str(n).encode(), LONG_S)
    for ticks in range(60):
        asked = asyncio.create_task(cache.get(f"k{ticks % 20}"))
        for _ in range(ticks % 12):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
        assert await cache.get(f"k{(ticks + 1) % 20}") == str((ticks + 1) % 20).encode()


async def test_health(cache: Cache) -> None:
    await cache.ping()
