"""What needs no Redis; the rest is in tests/conformance/limiter and tests/integration."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from headrace.adapters.memory_limiter import MemoryLimiterSettings
from headrace.adapters.redis.limiter import RedisLimiter
from headrace.adapters.redis.settings import RedisLimiterSettings
from headrace.domain.errors import InvalidSettings
from headrace.ports.limiter import Charge, Rate, Taken
from tests.support.waiting import until

NOWHERE = RedisLimiterSettings(url="redis://me:hunter2@127.0.0.1:1/0")
TEN = Charge("a", Rate(10, 3_600.0, 10))


async def answered(limiter: RedisLimiter, *charges: Charge) -> Taken:
    taken = limiter.take(charges)
    return await taken if isinstance(taken, asyncio.Future) else taken


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://localhost"},
        {"url": "redis://localhost?socket_timeout=60"},
        {"timeout_s": 0},
        {"retry_s": -1.0},
        {"max_keys": 0},
        {"max_waiting": 0},
        {"host": "x"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"kind": "redis", **wrong}, RedisLimiterSettings)


def test_the_kind_chooses_the_limiter() -> None:
    either = RedisLimiterSettings | MemoryLimiterSettings
    assert msgspec.convert({"kind": "redis"}, either) == RedisLimiterSettings()
    assert msgspec.convert({"kind": "memory"}, either) == MemoryLimiterSettings()


async def test_a_url_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as refused:
        RedisLimiter(RedisLimiterSettings(url="redis://:hunter2@host:port/0"), replicas=1)
    assert "hunter2" not in str(refused.value)


async def test_before_it_runs_a_process_has_its_share() -> None:
    limiter = RedisLimiter(NOWHERE, replicas=3)
    assert limiter.degraded
    granted = [(await answered(limiter, TEN))[0].allowed for _ in range(10)]
    assert granted.count(True) == 3
    await limiter.close()


async def test_a_redis_that_refuses_connections_leaves_a_process_its_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = RedisLimiter(NOWHERE, replicas=3)
    running = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    assert not limiter.degraded
    granted = await asyncio.gather(*(answered(limiter, TEN) for _ in range(10)))
    assert [spent.allowed for (spent,) in granted].count(True) == 3
    assert limiter.degraded
    assert not isinstance(limiter.take([TEN]), asyncio.Future)
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()
    assert "1/3 of the limits" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_redis_that_is_not_there_is_missed_before_anybody_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = RedisLimiter(NOWHERE, replicas=3, idle_s=3_600.0)
    running = asyncio.create_task(limiter.run())
    await until(lambda: "1/3 of the limits" in caplog.text)
    assert limiter.degraded
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()


@pytest.mark.parametrize("answer", [b"x", 7])
async def test_what_answers_nonsense_is_as_good_as_gone(
    answer: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RedisLimiter(NOWHERE, replicas=1)

    async def execute(*_: object) -> object:
        return answer

    monkeypatch.setattr(limiter._connection.redis, "execute_command", execute)  # noqa: SLF001
    running = asyncio.create_task(limiter.run())
    await until(lambda: "is gone" in caplog.text)
    assert limiter.degraded
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()
    assert "Traceback" not in caplog.text


async def test_whoever_waits_is_answered_when_it_ends() -> None:
    limiter = RedisLimiter(NOWHERE, replicas=1)
    running = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    waiting = [limiter.take([TEN]) for _ in range(12)]
    running.cancel()
    await asyncio.wait({running})
    done = [taken.result() for taken in waiting if isinstance(taken, asyncio.Future)]
    assert [spent.allowed for (spent,) in done] == [True] * 10 + [False] * 2
    await limiter.close()


async def test_what_comes_on_top_of_those_who_wait_is_decided_at_once() -> None:
    limiter = RedisLimiter(msgspec.structs.replace(NOWHERE, max_waiting=2), replicas=1)
    running = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    waits = [isinstance(limiter.take([TEN]), asyncio.Future) for _ in range(4)]
    assert waits == [True, True, False, False]
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()


async def test_a_caller_that_is_cancelled_leaves_the_others_their_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = RedisLimiter(NOWHERE, replicas=1)
    running = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    first, second = limiter.take([TEN]), limiter.take([TEN])
    assert isinstance(first, asyncio.Future)
    assert isinstance(second, asyncio.Future)
    first.cancel()
    assert (await second)[0].allowed
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()
    assert "Traceback" not in caplog.text


async def test_a_rate_that_is_none_is_the_callers_error() -> None:
    limiter = RedisLimiter(NOWHERE, replicas=1)
    with pytest.raises(ValueError, match="a rate needs"):
        limiter.take([Charge("a", Rate(0, 1.0, 1))])
    await limiter.close()
