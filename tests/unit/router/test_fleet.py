from __future__ import annotations

import asyncio
import random
from asyncio import CancelledError
from ipaddress import ip_address

import pytest

from headrace.domain.catalog import Endpoint
from headrace.domain.errors import EndpointFailed, HeadraceError, InvalidSettings
from headrace.domain.inference import InferResponse
from headrace.ports.upstream import Site, Sited
from headrace.resilience.backoff import RetrySettings
from headrace.router.fleet import EVERYBODY
from tests.support.router_fakes import RouterHouse, endpoint, failed, turns


def sited(*addresses: str, refused: tuple[str, ...] = ()) -> Sited:
    return Sited(tuple(Site("h", 80, ip_address(each)) for each in addresses), refused)


def addresses(house: RouterHouse, name: str = "e0") -> list[str]:
    state = house.fleet.state("default", name)
    return [] if state is None else [each.address for each in state.addresses]


def kinds(house: RouterHouse) -> list[str]:
    return [event.kind for event in reversed(house.fleet.events("default"))]


async def test_what_an_endpoint_has_shown_outlives_a_change_of_its_weight() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        (before,) = house.lanes
        await house.put(endpoint(0, weight=3.0, labels={"zone": "a"}))
        (after,) = house.lanes
        assert after is before
        assert after.weight(house.clock.now) == 3.0
        assert house.upstreams["http://h:8000"].closed == 0


async def test_an_endpoint_that_moves_serves_where_it_was_until_the_new_place_is_known() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        old = house.upstreams["http://h:8000"]
        house.sites["http://new:1"] = OSError("no such name")
        await house.put(endpoint(0, url="http://new:1"))
        await house.ask()
        assert (len(old.asked), old.closed) == (1, 0)
        del house.sites["http://new:1"]
        await house.put(endpoint(0, url="http://new:2"))
        assert old.closed == 1
        await house.ask()
        assert len(house.upstreams["http://new:2"].asked) == 1


async def test_an_endpoint_that_goes_is_asked_no_more_and_forgotten() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=1)) as house:
        await house.put(endpoint(0), endpoint(1))
        (lane, _) = house.lanes
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        upstream = house.upstreams["http://h:8000"]
        upstream.script = [held]
        request = asyncio.create_task(house.ask())
        await turns()
        while not upstream.asked:
            request = asyncio.create_task(house.ask())
            await turns()
        await house.drop(("default", "e0"))
        assert (addresses(house), upstream.closed) == ([], 1)
        lane.breaker.consecutive_failures = 4
        held.set_exception(failed())
        with pytest.raises(EndpointFailed):
            await request
        shown = house.counted("headrace_breaker_state")
        assert all("e0" not in labels for labels in shown), "not even by what was under way"
        assert "breaker-opened" not in kinds(house)


async def test_each_address_of_a_name_is_one_and_what_is_refused_is_none() -> None:
    async with RouterHouse() as house:
        house.sites["http://h:8000"] = sited("10.0.0.1", "10.0.0.2", refused=("192.0.2.1",))
        await house.put(endpoint(0))
        assert addresses(house) == ["10.0.0.1:80", "10.0.0.2:80"]
        assert kinds(house) == ["address-refused", "address-added", "address-added"]


async def test_an_endpoint_that_cannot_be_connected_to_is_told_and_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RouterHouse() as house:

        def refuse(_: Endpoint, site: Site | None) -> None:
            del site
            raise InvalidSettings("tls.x: there is no such profile")

        await house.put(endpoint(1))
        with monkeypatch.context() as patch:
            patch.setattr(house.fleet, "_connect", refuse)
            await house.put(endpoint(0))
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert "tls.x" in state.problem
        await house.ask()


async def test_the_settings_endpoints_are_nobodys_own() -> None:
    async with RouterHouse(shared=[("default", "e0")]) as house:
        await house.put(endpoint(0))
        assert house.fleet.serves(EVERYBODY, "m", catch_all=False)
        assert not house.fleet.serves("default", "m", catch_all=False)


async def test_however_many_names_clients_ask_for_few_are_kept_and_busy_ones_among_them() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=()))
        await house.ask("busy")
        busy = house.fleet.pool("default", "busy", balanced="p2c", catch_all=True)
        for number in range(4600):
            await house.ask(f"m{number}")
            if number % 500 == 0:
                house.fleet.pool("default", "busy", balanced="p2c", catch_all=True)
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert len(state.addresses[0].breakers) <= 4096
        again = house.fleet.pool("default", "busy", balanced="p2c", catch_all=True)
        assert again is busy


async def _ordeal(house: RouterHouse, chance: random.Random) -> None:
    """Requests to endpoints that fail, recover and hang, some of them cancelled."""
    requests: list[asyncio.Task[InferResponse]] = []
    held: list[asyncio.Future[None]] = []
    for _ in range(40):
        for upstream in house.upstreams.values():
            upstream.takes_s = 0.001
            if chance.random() < 0.2:
                upstream.always = failed() if upstream.always is None else None
            elif chance.random() < 0.2:
                held.append(asyncio.get_running_loop().create_future())
                upstream.script.append(held[-1])
        requests.append(asyncio.ensure_future(house.ask()))
        await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(requests).cancel()
        if held and chance.random() < 0.5:
            _end(held.pop(chance.randrange(len(held))))
        house.clock.now += chance.random()
    for future in held:
        _end(future)
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(o, (InferResponse, HeadraceError, CancelledError)) for o in outcomes)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@pytest.mark.parametrize("first", range(0, 200, 50))
async def test_after_any_schedule_of_faults_nothing_is_stuck(first: int) -> None:
    for seed in range(first, first + 50):
        async with RouterHouse() as house:
            await house.put(*(endpoint(number) for number in range(3)))
            await _ordeal(house, random.Random(seed))
            for upstream in house.upstreams.values():
                upstream.always = None
                upstream.script.clear()
            house.clock.now += 400
            for lane in house.lanes:
                lane.tally.ejected = False  # what a sweep does, which follows the real time
            for _ in range(100):
                await house.ask()
            assert [lane.in_flight for lane in house.lanes] == [0, 0, 0], seed
            assert {lane.breaker.phase for lane in house.lanes} == {"closed"}, seed
            attempts = sum(house.counted("headrace_endpoint_attempts_total").values())
            asked = sum(len(upstream.asked) for upstream in house.upstreams.values())
            assert attempts == asked, seed
