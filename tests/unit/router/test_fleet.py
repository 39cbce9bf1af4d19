from __future__ import annotations

import asyncio
import logging
import random
from asyncio import CancelledError
from datetime import timedelta
from ipaddress import ip_address

import pytest

from headrace.compose.upstreams import Upstreams
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointFailed,
    HeadraceError,
    InvalidSettings,
    NoReadyEndpoint,
)
from headrace.domain.inference import InferResponse
from headrace.ports.upstream import Site, Sited
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.router.groups import EVERYBODY
from headrace.router.settings import RouterSettings
from headrace.settings import Settings
from tests.support.router_fakes import AT, FakeUpstream, RouterHouse, endpoint, failed, turns
from tests.support.waiting import until


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


async def test_an_endpoint_that_is_to_be_reached_by_grpc_is_connected_to_anew() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        old = house.upstreams["http://h:8000"]
        await house.put(endpoint(0, grpc_url="grpc://h:8001"))
        assert old.closed == 1
        assert house.upstreams["http://h:8000"] is not old


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


QUICK = HealthCheckSettings(interval_s=0.001, jitter=0, unhealthy_after=2)


def told(house: RouterHouse, *kinds: str) -> list[tuple[str, str, str]]:
    """Events of these kinds, the oldest first: what, where, of which model."""
    events = reversed(house.fleet.events("default"))
    return [(event.kind, event.endpoint, event.model) for event in events if event.kind in kinds]


async def test_an_address_that_fails_its_checks_is_left_out_until_it_comes_back_slowly() -> None:
    slow_start = RouterSettings(slow_start_s=10)
    async with RouterHouse(health_checks=QUICK, router=slow_start) as house:
        await house.put(endpoint(0), endpoint(1))
        sick, well = house.lanes
        house.clock.now += 60
        upstream = house.upstreams["http://h:8000"]
        upstream.ready = False
        await until(lambda: not sick.sound)
        assert {(await house.ask()).version for _ in range(20)} == {"e1"}
        house.fleet.observe()
        gauge = house.counted("headrace_endpoint_healthy")
        assert gauge["default", "e0", sick.member.address] == 0
        assert gauge["default", "e1", well.member.address] == 1
        upstream.ready = True
        await until(lambda: sick.sound)
        assert told(house, "healthy", "unhealthy") == [
            ("unhealthy", "e0", ""),
            ("healthy", "e0", ""),
        ]
        now = house.clock.now
        assert [lane.weight(now) for lane in (sick, well)] == pytest.approx([0.1, 1.0])
        assert sick.weight(now + 10) == 1.0


async def test_a_model_that_is_not_ready_is_left_out_and_the_others_of_its_address_are_not() -> (
    None
):
    slow_start = RouterSettings(slow_start_s=10)
    async with RouterHouse(health_checks=QUICK, router=slow_start) as house:
        await house.put(endpoint(0, models=("m", "n")), endpoint(1))
        (sick, _), now = house.lanes, house.clock.now
        (other,) = house.fleet.pool("default", "n", balanced="p2c", catch_all=False).lanes
        house.clock.now = now = now + 60
        upstream = house.upstreams["http://h:8000"]
        upstream.lacking = {"m"}
        await until(lambda: not sick.ready(now))
        assert other.ready(now)
        assert (await house.ask("n")).version == "e0"
        assert {(await house.ask()).version for _ in range(20)} == {"e1"}
        upstream.lacking = set()
        await until(lambda: sick.ready(now))
        assert told(house, "healthy", "unhealthy") == [
            ("unhealthy", "e0", "m"),
            ("healthy", "e0", "m"),
        ]
        assert [sick.weight(now), other.weight(now)] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("models", [("m",), ()])
async def test_an_address_with_a_ready_model_serves_though_it_is_not_ready_as_a_whole(
    models: tuple[str, ...],
) -> None:
    async with RouterHouse(health_checks=QUICK) as house:
        await house.put(endpoint(0, models=models))
        await house.ask()
        (lane,), now = house.fleet.pool("default", "m", balanced="p2c", catch_all=True).lanes, 1e9
        upstream = house.upstreams["http://h:8000"]
        upstream.lacking = {""}
        checked = upstream.checked
        await until(lambda: upstream.checked > checked + 8)
        assert lane.ready(now)
        assert told(house, "unhealthy") == []
        upstream.lacking = {"", "m"}
        await until(lambda: not lane.ready(now))


async def test_checks_that_find_a_defect_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async with RouterHouse(health_checks=QUICK) as house:
        await house.put(endpoint(0))
        (lane,) = house.lanes
        upstream = house.upstreams["http://h:8000"]
        unready = upstream.unready
        with caplog.at_level(logging.ERROR):
            upstream.unready = None  # type: ignore[assignment, method-assign]
            await until(lambda: "cannot be checked" in caplog.text)
        upstream.unready = unready  # type: ignore[method-assign]
        upstream.ready = False
        await until(lambda: not lane.sound)


async def test_an_address_that_goes_is_checked_no_more() -> None:
    async with RouterHouse(health_checks=QUICK) as house:
        await house.put(endpoint(0), endpoint(1))
        gone, other = house.upstreams.values()
        await house.drop(("default", "e0"))
        before, seen = gone.checked, other.checked
        await until(lambda: other.checked > seen + 5)
        assert gone.checked == before


async def test_an_endpoint_that_fails_on_and_on_is_ejected_and_returns_slowly() -> None:
    async with RouterHouse(router=RouterSettings(slow_start_s=10)) as house:
        await house.put(endpoint(0), endpoint(1))
        bad, _ = house.lanes
        labels = ("default", "e0", bad.member.address, "m")
        began = house.clock.now
        for _ in range(10):
            bad.tally.failed(began)
        assert {(await house.ask()).version for _ in range(20)} == {"e1"}
        reason = "consecutive-failures"
        (event,) = (each for each in house.fleet.events("default") if each.kind == "ejected")
        assert (event.endpoint, event.model, event.detail) == ("e0", "m", reason)
        house.fleet.observe()
        assert house.counted("headrace_endpoint_ejected")[labels] == 1
        assert house.counted("headrace_endpoint_ejections_total") == {(*labels, reason): 1}
        state = house.fleet.state("default", "e0")
        assert state is not None
        (address,) = state.addresses
        assert (address.ready, address.healthy) == (False, True)
        assert address.ejected_until == AT + timedelta(seconds=30)
        house.clock.now += 30
        await until(lambda: bad.sound)
        house.fleet.observe()
        assert house.counted("headrace_endpoint_ejected")[labels] == 0
        assert told(house, "ejected", "returned") == [
            ("ejected", "e0", "m"),
            ("returned", "e0", "m"),
        ]
        assert bad.weight(house.clock.now) == pytest.approx(0.1)


async def test_a_name_that_answers_otherwise_later_moves_its_endpoint() -> None:
    often = RouterSettings(slow_start_s=0, dns_refresh_s=0.001)
    async with RouterHouse(router=often) as house:
        house.sites["http://h:8000"] = sited("10.0.0.1", "10.0.0.2")
        await house.put(endpoint(0))
        stayed = next(lane for lane in house.lanes if "10.0.0.2" in lane.name)
        house.sites["http://h:8000"] = sited("10.0.0.2", "10.0.0.3")
        await until(lambda: addresses(house) == ["10.0.0.2:80", "10.0.0.3:80"])
        assert stayed in house.lanes, "what it has shown is still known"
        assert kinds(house)[2:] == ["address-removed", "address-added"]
        assert (await house.ask()).version == "e0"


async def test_where_a_name_answers_no_more_its_addresses_stay_and_it_is_told_once() -> None:
    often = RouterSettings(slow_start_s=0, dns_refresh_s=0.001)
    async with RouterHouse(router=often) as house:
        house.sites["http://h:8000"] = sited("10.0.0.1")
        await house.put(endpoint(0))
        house.sites["http://h:8000"] = OSError("no such name")

        def problem() -> str:
            state = house.fleet.state("default", "e0")
            assert state is not None
            return state.problem

        await until(problem)
        looked_up = len(house.located)
        await until(lambda: len(house.located) > looked_up + 5)
        assert addresses(house) == ["10.0.0.1:80"]
        assert "no such name" in problem()
        assert (await house.ask()).version == "e0"
        assert kinds(house) == ["address-added", "unresolved"]
        house.sites["http://h:8000"] = sited("10.0.0.2")
        await until(lambda: addresses(house) == ["10.0.0.2:80"])
        assert problem() == ""


async def test_a_name_all_of_whose_addresses_come_to_be_refused_serves_no_more() -> None:
    often = RouterSettings(slow_start_s=0, dns_refresh_s=0.001)
    async with RouterHouse(router=often) as house:
        house.sites["http://h:8000"] = sited("10.0.0.1")
        await house.put(endpoint(0))
        house.sites["http://h:8000"] = sited(refused=("169.254.169.254",))
        await until(lambda: addresses(house) == [])
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert state.problem == "all of its addresses lie outside the allowed networks"
        with pytest.raises(NoReadyEndpoint):
            await house.ask()


async def test_a_pool_has_the_endpoints_that_serve_its_model_and_bear_its_labels() -> None:
    async with RouterHouse() as house:
        await house.put(
            endpoint(0, labels={"zone": "a", "gpu": "t4"}),
            endpoint(1, labels={"zone": "b"}),
            endpoint(2, models=("other",), labels={"zone": "a"}),
            endpoint(3, models=(), labels={"zone": "a"}),
            endpoint(4, url="", protocol="in-process", models=(), labels={"here": "yes"}),
        )

        def names(*, catch_all: bool = False, **labels: str) -> list[str]:
            pool = house.fleet.pool(
                "default", "m", frozenset(labels.items()), balanced="p2c", catch_all=catch_all
            )
            found = [lane.member.endpoint.name for lane in pool.lanes]
            serves = house.fleet.serves(
                "default", "m", frozenset(labels.items()), catch_all=catch_all
            )
            assert serves == bool(found)
            return found

        assert names() == ["e0", "e1"]
        assert names(zone="a") == ["e0"]
        assert names(zone="a", gpu="t4") == ["e0"]
        assert names(zone="c") == []
        assert names(catch_all=True) == ["e0", "e1", "e3"], "this process was looked at before"
        assert names(catch_all=True, zone="a") == ["e0", "e3"]
        assert names(catch_all=True, here="yes") == ["e4"]
        await house.put(endpoint(1, labels={"zone": "a"}))
        assert names(zone="a") == ["e0", "e1"]


async def test_a_profile_that_is_not_there_is_the_endpoints_problem_alone_until_it_is() -> None:
    async with RouterHouse() as house:
        connect = Upstreams(Settings(), in_process=lambda _: FakeUpstream("", house.clock))
        house.fleet._connect = connect  # noqa: SLF001 - the real one, which knows profiles
        found = Sited((Site("h", 443, ip_address("127.0.0.1"), secure=True),))
        house.sites["https://h:8000"] = found
        await house.put(endpoint(0, url="https://h:8000", tls="gone"))
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert state.addresses == ()
        assert "there is no such profile" in state.problem
        await house.put(endpoint(0, url="https://h:8000"))
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert ([each.ready for each in state.addresses], state.problem) == ([True], "")


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


async def test_a_change_of_its_models_shows_at_once_what_an_endpoint_serves_no_more() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("m", "n")))
        (lane,) = house.lanes
        await house.ask("n")
        await house.put(endpoint(0, models=("n",)))
        assert list(lane.member.lanes) == [("default", "n")]
        house.fleet.observe()
        assert {labels[3] for labels in house.counted("headrace_breaker_state")} == {"n"}


async def test_requests_that_hold_a_pool_are_sent_no_more_to_what_was_removed() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1))
        pool = house.fleet.pool("default", "m", balanced="p2c", catch_all=False)
        await house.drop(("default", "e0"))
        assert [lane.member.endpoint.name for lane in pool.lanes] == ["e1"]


async def test_nothing_is_counted_any_more_of_endpoints_that_went() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=1)) as house:
        await house.put(endpoint(0, models=()), endpoint(1, models=("m",)))
        catch_all, listed = (house.upstreams[f"http://h:800{n}"] for n in (0, 1))
        for name, upstream in (("made-up", catch_all), ("m", listed)):
            upstream.always = catch_all.always = failed()
            for _ in range(12):
                with pytest.raises(HeadraceError):
                    await house.ask(name)
            upstream.always = catch_all.always = None
            house.clock.now += 60
            await house.ask(name)
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        catch_all.script = [held]
        late = asyncio.create_task(house.ask("late"))
        await turns()
        house.fleet.observe()
        families = {
            "attempts_total", "seconds_count", "ejected", "ejections_total", "healthy", "in_flight"
        }  # fmt: skip
        names = {f"headrace_endpoint_{each}" for each in families} | {
            "headrace_breaker_state",
            "headrace_breaker_transitions_total",
        }
        assert {name for name in names if not house.counted(name)} <= {
            "headrace_endpoint_ejections_total"
        }
        await house.drop(("default", "e0"), ("default", "e1"))
        held.set_result(None)
        await late
        house.fleet.observe()
        assert [name for name in names if house.counted(name)] == []


async def test_operators_see_breakers_of_names_that_were_answered_open_ones_first() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=1)) as house:
        await house.put(endpoint(0, models=()))
        (upstream,) = house.upstreams.values()
        for number in range(220):
            await house.ask(f"m{number}")
        upstream.always = failed()
        for name in ("m219", "made-up"):
            for _ in range(5):
                with pytest.raises(EndpointFailed):
                    await house.ask(name)
        state = house.fleet.state("default", "e0")
        assert state is not None
        breakers = state.addresses[0].breakers
        assert len(breakers) == 200
        assert (breakers[0].model, breakers[0].phase) == ("m219", "open")
        assert "made-up" not in {each.model for each in breakers}


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
