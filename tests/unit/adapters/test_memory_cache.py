from __future__ import annotations

import msgspec
import pytest

from headrace.adapters.memory_cache import MemoryCache, MemoryCacheSettings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_entry_not_used_for_longest_goes_first() -> None:
    cache = MemoryCache(MemoryCacheSettings(max_entries=2), clock=Clock())
    await cache.add("a", b"1", 60)
    await cache.add("b", b"2", 60)
    await cache.get("a")
    await cache.add("c", b"3", 60)
    assert [await cache.get(key) for key in "abc"] == [b"1", None, b"3"]


async def test_bytes_are_bounded_whatever_is_put_in() -> None:
    cache = MemoryCache(MemoryCacheSettings(max_bytes=10_000), clock=Clock())
    for n in range(1000):
        await cache.add(f"a{n}", b"x" * n, 60)
        await cache.replace([f"b{n}", f"a{n // 2}"], b"y", 60)
        assert cache.size_bytes <= 10_000
    assert len(cache) > 5
    await cache.close()
    assert (len(cache), cache.size_bytes) == (0, 0)


async def test_a_value_over_the_bound_pushes_nothing_out() -> None:
    cache = MemoryCache(MemoryCacheSettings(max_bytes=10_000), clock=Clock())
    await cache.add("a", b"1", 60)
    assert not await cache.add("huge", b"x" * 10_000, 60)
    assert await cache.get("a") == b"1"
    assert await cache.get("huge") is None


async def test_a_value_lives_until_its_time_and_no_longer() -> None:
    clock = Clock()
    cache = MemoryCache(MemoryCacheSettings(), clock=clock)
    await cache.add("a", b"1", 10)
    clock.now = 9.999
    assert await cache.get("a") == b"1"
    clock.now = 10.0
    assert await cache.get("a") is None
    assert await cache.add("a", b"2", 10)


async def test_being_read_lengthens_no_life() -> None:
    clock = Clock()
    cache = MemoryCache(MemoryCacheSettings(), clock=clock)
    await cache.add("a", b"1", 10)
    for clock.now in (3.0, 6.0, 9.0):
        assert await cache.get("a") == b"1"
    clock.now = 10.0
    assert await cache.get("a") is None


@pytest.mark.parametrize("wrong", [{"max_entries": 0}, {"max_bytes": 0}, {"max_size": 1}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "memory", **wrong}, MemoryCacheSettings)
