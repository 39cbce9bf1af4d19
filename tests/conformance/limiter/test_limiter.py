"""What every limiter does: that of one process, and that of several in Redis or Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from headrace.adapters.memory_limiter import MemoryLimiter, MemoryLimiterSettings
from headrace.adapters.redis.limiter import RedisLimiter
from headrace.adapters.redis.settings import RedisLimiterSettings
from headrace.ports.limiter import Charge, Limiter, Rate, Spent, Taken
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import until

#: Of which nothing comes back while a test runs.
TEN = Rate(quota=10, window_s=36_000.0, burst=10)
#: Any characters: what separates, what ends, what is no ASCII, and what is no text.
ODD_NAMES = (" ", "a b", "a:b", "a\nb", "a\0b", "{a}", "}{", "ключ", "🌊", "\ud800", "k" * 10_000)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(params=["memory", "redis"])
async def limiter(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Limiter]:
    async with contextlib.AsyncExitStack() as stack:
        made: MemoryLimiter | RedisLimiter
        if request.param == "memory":
            made = MemoryLimiter(MemoryLimiterSettings())
        else:
            server: Valkey = request.getfixturevalue("server")
            # every test finds it empty; a busy machine is no fault
            prefix = f"{request.node.nodeid}:"
            settings = RedisLimiterSettings(url=server.url, prefix=prefix, timeout_s=10.0)
            made = RedisLimiter(settings, replicas=1)
            running = asyncio.create_task(made.run())
            stack.callback(running.cancel)
            await asyncio.sleep(0)
        stack.push_async_callback(made.close)
        yield made
        # nor did it decide anything by itself after an error
        assert not made.degraded
        assert not [record for record in caplog.get_records("call") if record.exc_info]


async def answered(limiter: Limiter, *charges: Charge) -> Taken:
    taken = limiter.take(charges)
    return await taken if isinstance(taken, asyncio.Future) else taken


async def allowed(limiter: Limiter, *charges: Charge) -> bool:
    return all(spent.allowed for spent in await answered(limiter, *charges))


async def one(limiter: Limiter, charge: Charge) -> Spent:
    (spent,) = await answered(limiter, charge)
    return spent


async def test_a_bucket_that_was_never_charged_is_full(limiter: Limiter) -> None:
    spent = await one(limiter, Charge("a", TEN, 0))
    assert spent == Spent(allowed=True, remaining=10, reset_s=0.0)


async def test_within_limit(limiter: Limiter) -> None:
    for left in range(9, -1, -1):
        spent = await one(limiter, Charge("a", TEN))
        assert (spent.allowed, spent.remaining, spent.retry_after_s) == (True, left, 0.0)
        assert spent.reset_s == pytest.approx((10 - left) * 3_600.0, abs=60.0)


async def test_over_limit(limiter: Limiter) -> None:
    assert await allowed(limiter, Charge("a", TEN, 10))
    spent = await one(limiter, Charge("a", TEN, 3))
    assert (spent.allowed, spent.remaining) == (False, 0)
    assert spent.retry_after_s == pytest.approx(3 * 3_600.0, abs=60.0)
    assert spent.reset_s == pytest.approx(36_000.0, abs=60.0)


async def test_units_are_counted(limiter: Limiter) -> None:
    assert await allowed(limiter, Charge("a", TEN, 7))
    assert not await allowed(limiter, Charge("a", TEN, 4))
    assert await allowed(limiter, Charge("a", TEN, 3))
    assert not await allowed(limiter, Charge("a", TEN))


async def test_more_than_a_burst_is_never_there(limiter: Limiter) -> None:
    for units in (11, 10**30):
        spent = await one(limiter, Charge("a", TEN, units))
        assert spent == Spent(
            allowed=False, remaining=10, reset_s=0.0, retry_after_s=math.inf
        )  # fmt: skip


async def test_buckets_do_not_know_each_other(limiter: Limiter) -> None:
    for name in ODD_NAMES:
        assert (await one(limiter, Charge(name, TEN, 6))).allowed
        assert not (await one(limiter, Charge(name, TEN, 6))).allowed


async def test_several_are_all_spent_or_none(limiter: Limiter) -> None:
    assert await allowed(limiter, Charge("a", TEN, 4), Charge("b", TEN, 8))
    first, second, third = await answered(
        limiter, Charge("a", TEN, 4), Charge("b", TEN, 4), Charge("c", TEN, 4)
    )
    assert (first.allowed, first.remaining) == (True, 6)
    assert (second.allowed, second.remaining) == (False, 2)
    assert (third.allowed, third.remaining) == (True, 10)
    assert second.retry_after_s > 0 == first.retry_after_s == third.retry_after_s
    assert await allowed(limiter, Charge("a", TEN, 6), Charge("b", TEN, 2), Charge("c", TEN, 10))


async def test_one_bucket_may_be_charged_twice_by_a_call(limiter: Limiter) -> None:
    assert not await allowed(limiter, Charge("a", TEN, 6), Charge("a", TEN, 5))
    assert await allowed(limiter, Charge("a", TEN, 5), Charge("a", TEN, 5))
    assert not await allowed(limiter, Charge("a", TEN))


async def test_nothing_to_spend_is_allowed(limiter: Limiter) -> None:
    assert list(await answered(limiter)) == []


async def test_units_come_back(limiter: Limiter) -> None:
    quick = Rate(quota=20, window_s=1.0, burst=2)
    assert await allowed(limiter, Charge("a", quick, 2))

    async def again() -> bool:
        return await allowed(limiter, Charge("a", quick, 2))

    await until(again)


async def test_many_calls_of_one_moment_are_decided_in_their_order(limiter: Limiter) -> None:
    rate = Rate(quota=700, window_s=36_000.0, burst=700)
    taken = await asyncio.gather(*(answered(limiter, Charge("a", rate)) for _ in range(1_000)))
    assert [spent.allowed for (spent,) in taken] == [True] * 700 + [False] * 300
    assert [spent.remaining for (spent,) in taken[:700]] == list(range(699, -1, -1))


async def test_64_clients_never_exceed_the_quota_by_one(limiter: Limiter) -> None:
    rate = Rate(quota=500, window_s=36_000.0, burst=500)

    async def client(n: int) -> int:
        mine = Charge(f"client {n}", rate)
        return sum([await allowed(limiter, mine, Charge("all", rate)) for _ in range(12)])

    assert sum(await asyncio.gather(*(client(n) for n in range(64)))) == 500


async def test_a_bucket_that_fills_while_64_clients_spend_gives_what_came_back(
    limiter: Limiter,
) -> None:
    rate = Rate(quota=2_000, window_s=1.0, burst=50)
    began = time.monotonic()

    async def client() -> int:
        return sum([await allowed(limiter, Charge("a", rate)) for _ in range(30)])

    granted = sum(await asyncio.gather(*(client() for _ in range(64))))
    assert 50 <= granted <= 50 + 2_000 * (time.monotonic() - began)


async def test_a_caller_that_is_cancelled_takes_nobodys_answer_along(limiter: Limiter) -> None:
    for n in range(20):
        assert await allowed(limiter, Charge(f"k{n}", TEN, n % 10))
    for ticks in range(60):
        asked = asyncio.create_task(answered(limiter, Charge("x", TEN, 0)))
        for _ in range(ticks % 12):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
        spent = await one(limiter, Charge(f"k{ticks % 20}", TEN, 0))
        assert spent.remaining == 10 - ticks % 20 % 10
