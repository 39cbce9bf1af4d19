from __future__ import annotations

import asyncio

import pytest

from headrace.domain.errors import EndpointBusy, EndpointFailed, NoReadyEndpoint
from headrace.resilience.backoff import RetrySettings
from tests.support.router_fakes import RouterHouse, endpoint, failed, turns


async def test_who_is_as_busy_as_it_may_be_is_not_asked() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, max_in_flight=1))
        (only,) = house.upstreams.values()
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        only.script = [held]
        first = asyncio.create_task(house.ask())
        await turns()
        with pytest.raises(EndpointBusy):
            await house.ask()
        assert isinstance(house.router.obstacle("default", "m", ""), EndpointBusy)
        held.set_result(None)
        await first
        assert house.router.obstacle("default", "m", "") is None


async def test_where_no_breaker_lets_in_the_caller_is_told_when_one_will() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=1)) as house:
        await house.put(endpoint(0))
        (only,) = house.upstreams.values()
        only.script = [failed()] * 5
        for _ in range(5):
            with pytest.raises(EndpointFailed):
                await house.ask()
        with pytest.raises(NoReadyEndpoint) as caught:
            await house.ask()
        wait_s = caught.value.retry_after_s
        assert wait_s is not None
        assert 0.8 <= wait_s <= 1.0
        house.clock.now += wait_s
        await house.ask()


async def test_unsound_endpoints_are_asked_where_too_few_others_are_left() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1), endpoint(2))
        lanes = house.lanes
        lanes[0].member.checks.healthy = False
        for _ in range(60):
            await house.ask()
        first = house.upstreams["http://h:8000"]
        assert first.asked == []
        assert house.counted("headrace_endpoint_panics_total") == {}
        lanes[1].member.checks.healthy = False
        for _ in range(60):
            await house.ask()
        assert first.asked
        assert house.counted("headrace_endpoint_panics_total") == {("m",): 60}


async def test_the_endpoint_tried_last_is_not_tried_next_while_another_is_ready() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1))
        pool = house.fleet.pool("default", "m", balanced="p2c", catch_all=False)
        one, two = pool.lanes
        picked = {pool.pick(house.clock.now, "", [one, two]) for _ in range(30)}
        assert picked == {one}
