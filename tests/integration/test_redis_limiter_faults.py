"""Limits of several processes on one Redis, and a Redis that is killed, frozen, or forgetful."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.adapters.redis.limiter import RedisLimiter
from headrace.adapters.redis.settings import RedisLimiterSettings
from headrace.ports.limiter import Charge, Rate, Taken
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import until

TIMEOUT_S: Final = 0.5
RETRY_S: Final = 0.2
#: What a busy machine may add to a timeout.
SLACK_S: Final = 1.0
#: Of which nothing comes back while a test runs.
LONG_S: Final = 360_000.0
HUNDRED: Final = Charge("tenant", Rate(100, LONG_S, 100))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
async def ours(server: Valkey) -> AsyncIterator[RedisLimiter]:
    async with running(server) as limiter:
        yield limiter


@pytest.fixture
async def theirs(server: Valkey) -> AsyncIterator[RedisLimiter]:
    async with running(server) as limiter:
        yield limiter


@contextlib.asynccontextmanager
async def running(
    server: Valkey, *, idle_s: float = 60.0, **changed: Any
) -> AsyncIterator[RedisLimiter]:
    """One of two replicas."""
    settings = {"url": server.url, "timeout_s": TIMEOUT_S, "retry_s": RETRY_S, **changed}
    limiter = RedisLimiter(RedisLimiterSettings(**settings), replicas=2, idle_s=idle_s)
    task = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    yield limiter
    task.cancel()
    await asyncio.wait({task})
    await limiter.close()


async def answered(limiter: RedisLimiter, *charges: Charge) -> Taken:
    taken = limiter.take(charges)
    return await taken if isinstance(taken, asyncio.Future) else taken


async def granted(limiter: RedisLimiter, charge: Charge, times: int) -> int:
    """How many of so many calls at once are allowed."""
    taken = await asyncio.gather(*(answered(limiter, charge) for _ in range(times)))
    return sum(spent.allowed for (spent,) in taken)


async def command_calls(limiter: RedisLimiter, name: str) -> int:
    """How often the server did a command, as an operator sees it."""
    redis = limiter._connection.redis  # noqa: SLF001
    statistics = await redis.info("commandstats")
    return int(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"])


def spend(server: Valkey, rate: Rate, *, clients: int, takes: int) -> int:
    """What two processes were allowed together."""
    asked = [server.url, rate.quota, rate.window_s, rate.burst, clients, takes]
    command = [sys.executable, "-m", "tests.support.limiter_client", *map(str, asked)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=100.0)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    each = [int(output) for output in outputs]
    assert min(each) > 0
    return sum(each)


def test_two_processes_of_64_clients_never_exceed_the_quota_by_one(server: Valkey) -> None:
    # 5,120 are asked for
    assert spend(server, Rate(2_000, LONG_S, 2_000), clients=64, takes=40) == 2_000


def test_a_bucket_that_fills_meanwhile_gives_two_processes_no_more_than_came_back(
    server: Valkey,
) -> None:
    began = time.monotonic()
    total = spend(server, Rate(500, 1.0, 20), clients=64, takes=40)
    assert 20 <= total <= 20 + 500 * (time.monotonic() - began)


async def test_calls_of_one_moment_are_decided_by_one_script(ours: RedisLimiter) -> None:
    await answered(ours, HUNDRED)
    before = await command_calls(ours, "evalsha")
    assert await granted(ours, HUNDRED, 64) == 64
    assert await command_calls(ours, "evalsha") == before + 1
    # of which none decides more than 256
    assert await granted(ours, HUNDRED, 513) == 35
    assert await command_calls(ours, "evalsha") == before + 4


async def test_calls_that_come_while_others_are_decided_wait_for_the_next_script(
    ours: RedisLimiter,
) -> None:
    await answered(ours, HUNDRED)
    before = await command_calls(ours, "evalsha")
    calls = []
    for _ in range(10):
        calls.append(asyncio.ensure_future(answered(ours, HUNDRED)))
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert await command_calls(ours, "evalsha") < before + 10


async def test_a_caller_that_is_cancelled_leaves_the_others_of_its_script_their_answers(
    ours: RedisLimiter,
) -> None:
    cancelled, *others = [ours.take([HUNDRED]) for _ in range(3)]
    assert isinstance(cancelled, asyncio.Future)
    cancelled.cancel()
    # as Redis counts, and not this process
    remaining = [(await x)[0].remaining for x in others if isinstance(x, asyncio.Future)]
    assert remaining == [98, 97]


async def test_nothing_stays_in_redis_once_it_is_full_again(ours: RedisLimiter) -> None:
    assert await granted(ours, Charge("a", Rate(100, 1.0, 10)), 10) == 10
    redis = ours._connection.redis  # noqa: SLF001

    async def empty() -> bool:
        return await redis.dbsize() == 0

    assert 0 < await redis.pttl("headrace:{rl}a") <= 101
    await until(empty)


async def test_a_killed_redis_leaves_each_replica_its_share(
    server: Valkey, ours: RedisLimiter
) -> None:
    fresh = Charge("not seen before", HUNDRED.rate)
    assert await granted(ours, HUNDRED, 20) == 20
    server.kill()
    began = time.monotonic()
    assert await granted(ours, fresh, 200) == 50
    assert ours.degraded
    # what it granted before counts, at its share
    assert await granted(ours, HUNDRED, 200) == 30
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    (spent,) = await answered(ours, Charge("large", HUNDRED.rate, 51))
    assert not spent.allowed
    assert spent.retry_after_s < LONG_S


async def test_going_degraded_hands_out_no_fresh_burst(server: Valkey, ours: RedisLimiter) -> None:
    assert await granted(ours, HUNDRED, 200) == 100
    server.kill()
    assert await granted(ours, HUNDRED, 200) == 0
    assert ours.degraded


async def test_a_redis_that_is_back_decides_again(
    server: Valkey, ours: RedisLimiter, theirs: RedisLimiter
) -> None:
    await answered(ours, HUNDRED)
    await answered(theirs, HUNDRED)
    server.kill()
    await asyncio.gather(answered(ours, HUNDRED), answered(theirs, HUNDRED))
    assert ours.degraded
    assert theirs.degraded
    server.start()
    await until(lambda: not ours.degraded and not theirs.degraded)
    both = await asyncio.gather(granted(ours, HUNDRED, 90), granted(theirs, HUNDRED, 90))
    # it was started empty, and told what each granted meanwhile
    assert sum(both) == 98
    assert not ours.degraded
    assert not theirs.degraded


async def test_a_frozen_redis_costs_its_timeout_once(server: Valkey, ours: RedisLimiter) -> None:
    await answered(ours, HUNDRED)
    server.freeze()
    try:
        began = time.monotonic()
        # two scripts' worth: nobody waits for two timeouts
        assert await granted(ours, Charge("a", HUNDRED.rate), 400) == 50
        took = time.monotonic() - began
        assert TIMEOUT_S * 0.9 <= took < TIMEOUT_S + SLACK_S
        asked = 0
        while time.monotonic() < began + 2 * (TIMEOUT_S + RETRY_S):
            # looks go on beside it, and nobody waits for them
            assert not isinstance(ours.take([HUNDRED]), asyncio.Future)
            assert ours.degraded
            asked += 1
            await asyncio.sleep(0)
        assert asked > 100
    finally:
        server.thaw()
    await until(lambda: not ours.degraded)
    assert isinstance(ours.take([HUNDRED]), asyncio.Future)


async def test_what_a_process_granted_alone_is_not_granted_again(
    server: Valkey, ours: RedisLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Charge("other", HUNDRED.rate)
    connection, looks = ours._connection, 0  # noqa: SLF001 - to see that it looks
    ask = connection.ask

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return await ask(*arguments, **named)

    assert await granted(ours, HUNDRED, 20) == 20
    server.freeze()
    try:
        await answered(ours, Charge("nothing", HUNDRED.rate, 0))
        assert ours.degraded
        # a share, of which 10 went for the 20 that Redis knows of
        assert await granted(ours, HUNDRED, 200) == 30
        assert await granted(ours, other, 200) == 50
        monkeypatch.setattr(connection, "ask", counted)
        await until(lambda: looks >= 4)  # all of which are heard in the end
    finally:
        server.thaw()
    await until(lambda: not ours.degraded)
    assert await granted(ours, HUNDRED, 200) == 50
    assert await granted(ours, other, 200) == 50


async def test_of_what_was_granted_alone_redis_records_what_is_there(
    server: Valkey, ours: RedisLimiter, theirs: RedisLimiter
) -> None:
    assert await granted(theirs, HUNDRED, 60) == 60
    server.freeze()
    try:
        await answered(ours, Charge("nothing", HUNDRED.rate, 0))
        assert await granted(ours, HUNDRED, 200) == 50
    finally:
        server.thaw()
    await until(lambda: not ours.degraded)
    (spent,) = await answered(ours, HUNDRED)
    assert (spent.allowed, spent.remaining) == (False, 0)


async def test_who_owes_much_decides_alone_until_little_of_it_is_left(
    server: Valkey, ours: RedisLimiter
) -> None:
    ten = Rate(10, LONG_S, 10)
    server.freeze()
    try:
        await answered(ours, Charge("nothing", ten, 0))
        for n in range(1_700):
            await answered(ours, Charge(f"k{n}", ten, 4))
    finally:
        server.thaw()
    await until(lambda: not ours._connection.gone)  # noqa: SLF001
    assert ours.degraded
    assert not isinstance(ours.take([Charge("k0", ten)]), asyncio.Future)
    await until(lambda: not ours.degraded)
    # some are not paid yet, and are before this is decided
    remaining = [
        (await answered(ours, Charge(f"k{n}", ten, 0)))[0].remaining for n in (0, 1, 1_699)
    ]
    assert remaining == [5, 6, 6]


async def test_a_redis_that_goes_while_nobody_asks_is_missed(server: Valkey) -> None:
    async with running(server, idle_s=0.05) as limiter:
        await answered(limiter, HUNDRED)
        server.kill()
        await until(lambda: limiter.degraded)
        server.start()
        await until(lambda: not limiter.degraded)


async def test_calls_that_gather_behind_a_frozen_script_wait_no_longer_than_it(
    server: Valkey, ours: RedisLimiter
) -> None:
    await answered(ours, HUNDRED)
    server.freeze()
    try:
        began = time.monotonic()
        first = asyncio.ensure_future(answered(ours, HUNDRED))
        for _ in range(20):
            await asyncio.sleep(0)
        assert await granted(ours, HUNDRED, 10) == 10
        assert time.monotonic() - began < TIMEOUT_S + SLACK_S
        assert (await first)[0].allowed
    finally:
        server.thaw()


async def test_the_time_that_a_call_waited_for_its_script_counts(server: Valkey) -> None:
    now_ns = 0
    limiter = RedisLimiter(
        RedisLimiterSettings(url=server.url, timeout_s=60.0), replicas=2, clock_ns=lambda: now_ns
    )
    task = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    await answered(limiter, HUNDRED)
    server.freeze()
    try:
        call = limiter.take([HUNDRED])
        assert isinstance(call, asyncio.Future)
        now_ns += 60_000_000_000
        async with asyncio.timeout(20.0):
            assert (await call)[0].allowed
        assert limiter.degraded
    finally:
        server.thaw()
        task.cancel()
        await asyncio.wait({task})
        await limiter.close()


async def test_a_script_that_redis_was_told_to_forget_is_sent_again(
    ours: RedisLimiter,
) -> None:
    assert await granted(ours, HUNDRED, 60) == 60
    await ours._connection.redis.script_flush()  # noqa: SLF001 - as an operator would
    assert await granted(ours, HUNDRED, 60) == 40
    assert not ours.degraded


async def test_a_redis_that_refuses_writes_is_as_good_as_gone(
    server: Valkey, ours: RedisLimiter
) -> None:
    await answered(ours, HUNDRED)
    async with running(server) as operator:
        redis = operator._connection.redis  # noqa: SLF001
        await redis.config_set("maxmemory", "1")
        assert await granted(ours, HUNDRED, 200) == 49
        # a look finds that it answers, and that this is not enough
        looks = await command_calls(operator, "evalsha")

        async def has_looked() -> bool:
            return await command_calls(operator, "evalsha") > looks + 1

        await until(has_looked)
        assert ours.degraded
        await redis.config_set("maxmemory", "0")
        await until(lambda: not ours.degraded)


async def test_foreign_values_under_our_keys_spoil_no_other_call(ours: RedisLimiter) -> None:
    redis = ours._connection.redis  # noqa: SLF001
    await redis.set("headrace:{rl}a", "nan")
    await redis.rpush("headrace:{rl}b", "x")
    ten = Rate(10, LONG_S, 10)
    for name in "abc":
        assert await granted(ours, Charge(name, ten), 15) == 10
    assert not ours.degraded


async def test_a_server_clock_that_was_set_back_closes_no_bucket_for_longer(
    ours: RedisLimiter,
) -> None:
    quick = Charge("a", Rate(100, 100.0, 5))
    assert await granted(ours, quick, 9) == 5
    redis = ours._connection.redis  # noqa: SLF001
    an_hour = 3_600 * 16_000_000
    await redis.incrby("headrace:{rl}a", an_hour)
    (spent,) = await answered(ours, quick)
    assert not spent.allowed
    assert spent.reset_s == pytest.approx(5.0)
