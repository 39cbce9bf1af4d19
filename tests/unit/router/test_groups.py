from __future__ import annotations

import asyncio

import pytest

from headrace.domain.errors import EndpointFailed
from headrace.resilience.backoff import RetrySettings
from headrace.router.groups import EVERYBODY
from headrace.router.pool import Pool
from tests.support.router_fakes import RouterHouse, endpoint, failed, turns

ONCE = RetrySettings(max_attempts=1)


def pool(house: RouterHouse, model: str, tenant: str = "default") -> Pool:
    return house.fleet.pool(tenant, model, balanced="p2c", catch_all=True)


async def ask_for_many(house: RouterHouse, count: int, *, first: int = 0) -> None:
    """Ask for names that nobody asked for before, a second each."""
    for number in range(first, first + count):
        house.clock.now += 1
        try:
            await house.ask(f"made-up-{number}")
        except EndpointFailed:
            continue


async def test_names_that_one_tenant_makes_up_push_out_nothing_of_another() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()), endpoint(1, models=(), tenant="other"))
        theirs = pool(house, "theirs", "other")
        await ask_for_many(house, 600)
        assert pool(house, "theirs", "other") is theirs


async def test_names_that_an_endpoint_lists_stay_however_many_are_made_up() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()), endpoint(1, models=("listed",)))
        listed = pool(house, "listed")
        house.clock.now += 1
        await ask_for_many(house, 600)
        assert pool(house, "listed") is listed


async def test_a_name_that_an_endpoint_lists_takes_no_room_from_others() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()), endpoint(1, models=("listed",)))
        await house.ask("first")
        first = pool(house, "first")
        await ask_for_many(house, 255)
        await house.ask("listed")
        assert pool(house, "first") is first
        await ask_for_many(house, 1, first=255)
        assert pool(house, "first") is not first


async def test_of_names_that_no_endpoint_lists_few_are_kept() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        (lane,) = pool(house, "made-up-0").lanes
        for _ in range(4):
            await ask_for_many(house, 150, first=int(house.clock.now))
            assert len(lane.member.lanes) <= 256


async def test_what_was_counted_of_a_name_goes_with_it() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        for first in range(0, 900, 300):
            await ask_for_many(house, 300, first=first)
            house.fleet.observe()
        for family in ("endpoint_attempts_total", "endpoint_seconds_count", "breaker_state"):
            assert len(house.counted(f"headrace_{family}")) <= 257, "256, and those of no name"


async def test_what_requests_used_last_is_kept_rather_than_what_was_looked_up_last() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        for name in ("looked-up", "used"):
            await house.ask(name)
        looked_up, used = pool(house, "looked-up"), pool(house, "used")
        await ask_for_many(house, 254)
        await house.ask("used")
        assert pool(house, "looked-up") is looked_up
        await ask_for_many(house, 1, first=254)
        assert pool(house, "used") is used
        assert pool(house, "made-up-254").lanes[0].proven
        assert pool(house, "looked-up") is not looked_up


async def test_names_that_nobody_answered_for_go_before_those_that_were_answered() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        (upstream,) = house.upstreams.values()
        await house.ask("real")
        real = pool(house, "real")
        upstream.always = failed()
        await ask_for_many(house, 600)
        assert pool(house, "real") is real


async def test_a_request_whose_model_had_to_make_room_is_answered_all_the_same() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        (upstream,) = house.upstreams.values()
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        upstream.script = [held]
        slow = asyncio.create_task(house.ask("slow"))
        await turns()
        (lane,) = pool(house, "slow").lanes
        await ask_for_many(house, 300)
        assert ("default", "slow") not in lane.member.lanes
        held.set_result(None)
        assert (await slow).model == "slow"
        assert lane.in_flight == 0
        assert pool(house, "slow").lanes != [lane]


async def test_a_change_of_endpoints_costs_models_that_are_not_asked_for_again_nothing() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()))
        await ask_for_many(house, 100)
        kept = pool(house, "made-up-0")
        (before,) = kept.lanes
        await house.put(endpoint(1, models=()), endpoint(2, models=()))
        assert pool(house, "made-up-0") is kept
        assert [lane.member.endpoint.name for lane in kept.lanes] == ["e0", "e1", "e2"]
        assert kept.lanes[0] is before
        assert list(kept.lanes[1].member.lanes) == [("default", "made-up-0")]


async def test_endpoints_of_the_settings_that_come_and_go_are_followed_for_every_tenant() -> None:
    async with RouterHouse(shared=[("default", "e0"), ("default", "e1")]) as house:
        await house.put(endpoint(0))
        shared = pool(house, "m", EVERYBODY)
        await house.put(endpoint(1))
        assert pool(house, "m", EVERYBODY) is shared
        assert [lane.member.endpoint.name for lane in shared.lanes] == ["e0", "e1"]


async def test_a_tenant_without_endpoints_leaves_no_names_behind() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0, models=()), endpoint(1, models=(), tenant="other"))
        gone, stays = pool(house, "m"), pool(house, "m", "other")
        await house.drop(("default", "e0"))
        assert pool(house, "m").lanes == []
        assert pool(house, "m") is not gone
        assert pool(house, "m", "other") is stays


async def test_an_address_that_returns_is_judged_afresh() -> None:
    async with RouterHouse(retries=ONCE) as house:
        await house.put(endpoint(0), endpoint(1))
        (broken, _) = pool(house, "m").lanes
        ticket = broken.breaker.begin(house.clock.now)
        for _ in range(5):
            broken.breaker.failed(ticket, house.clock.now)
        await house.drop(("default", "e0"))
        await house.put(endpoint(0))
        again = next(lane for lane in pool(house, "m").lanes if lane.name == broken.name)
        assert (broken.breaker.phase, again.breaker.phase) == ("open", "closed")


@pytest.mark.parametrize("models", [(), ("m",)])
async def test_one_model_asked_for_with_other_labels_is_one_group(models: tuple[str, ...]) -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=models, labels={"zone": "a"}))
        zone = frozenset({("zone", "a")})
        narrow = house.fleet.pool("default", "m", zone, balanced="p2c", catch_all=True)
        assert narrow is not pool(house, "m")
        assert narrow.lanes == pool(house, "m").lanes
