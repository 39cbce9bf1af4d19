from __future__ import annotations

import asyncio

import msgspec
import pytest

from headrace.adapters.memory_limiter import MemoryLimiter, MemoryLimiterSettings
from headrace.ports.limiter import Charge, Rate


def test_an_impossible_bound_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "memory", "max_keys": 0}, MemoryLimiterSettings)


def test_it_answers_at_once_and_never_asks_others() -> None:
    limiter = MemoryLimiter(MemoryLimiterSettings(), clock_ns=lambda: 0)
    assert [spent.remaining for spent in limiter.take([Charge("a", Rate(5, 1.0, 5))])] == [4]
    assert not limiter.degraded


async def test_keys_are_bounded_and_forgotten_when_it_is_closed() -> None:
    limiter = MemoryLimiter(MemoryLimiterSettings(max_keys=10), clock_ns=lambda: 0)
    for n in range(100):
        limiter.take([Charge(str(n), Rate(5, 1.0, 5))])
    assert len(limiter) == 10
    await limiter.close()
    assert len(limiter) == 0


async def test_64_clients_together_get_the_quota_and_not_one_more() -> None:
    limiter = MemoryLimiter(MemoryLimiterSettings(), clock_ns=lambda: 0)
    tenant, model = Rate(500, 60.0, 500), Rate(400, 60.0, 400)

    async def client(n: int) -> int:
        granted = 0
        for turn in range(50):
            charges = [Charge("tenant", tenant), Charge(f"model {n % 2}", model)]
            granted += all(spent.allowed for spent in limiter.take(charges))
            if turn % 3 == n % 3:
                await asyncio.sleep(0)
        return granted

    assert sum(await asyncio.gather(*(client(n) for n in range(64)))) == 500
