from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from headrace.domain.errors import EndpointFailed, Unsupported
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.router.endpoint_statistics import EndpointStatistics
from headrace.router.member import Member
from headrace.telemetry.metrics import Metrics
from tests.support.router_fakes import FakeUpstream, RouterHouse, endpoint, turns
from tests.support.waiting import settled, until

INFERENCES = "headrace_endpoint_model_inferences_total"


def row(name: str, version: str = "1", *, inferences: int = 0, queue_ns: int = 0) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "inference_count": inferences,
        "inference_stats": {"queue": {"count": inferences, "ns": queue_ns}},
    }


class Server:
    """An address whose statistics a test sets, read by hand."""

    def __init__(self, statistics: EndpointStatistics, member: Member) -> None:
        self.member = member
        self._statistics = statistics
        self._before: Any = None

    async def read(self, *rows: dict[str, Any]) -> None:
        async def told(*_: object) -> Sequence[dict[str, Any]]:
            return rows

        models: Any = type("Models", (), {"statistics": staticmethod(told)})
        self._before = await self._statistics.read(self.member, models, self._before)


@pytest.fixture
async def house() -> AsyncIterator[RouterHouse]:
    async with RouterHouse() as house:
        yield house


@pytest.fixture
def statistics() -> tuple[EndpointStatistics, Metrics]:
    metrics = Metrics(version="1")
    settings = HealthCheckSettings()
    return EndpointStatistics(
        metrics, settings=settings, clock=lambda: 0.0, chance=lambda: 0.5
    ), metrics


async def server(
    house: RouterHouse, statistics: EndpointStatistics, number: int = 0, **fields: Any
) -> Server:
    put = endpoint(number, **fields)
    await house.put(put)
    ((_, members),) = [e for e in house.fleet.endpoints("default") if e[0].name == put.name]
    return Server(statistics, members[0])


def counted(metrics: Metrics, family: str = INFERENCES) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for metric in metrics._registry.collect():  # noqa: SLF001 - as a scrape sees it
        for sample in metric.samples:
            if sample.name == family:
                labels = sample.labels
                key = (labels["endpoint"], labels["model"], labels["version"])
                found[key] = sample.value
    return found


async def test_what_has_come_since_the_first_reading_is_counted(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    one = await server(house, read)
    await one.read(row("m", inferences=1000, queue_ns=5))
    assert counted(metrics) == {("e0", "m", "1"): 0}
    await one.read(row("m", inferences=1003, queue_ns=1_500_000_005), row("m", "2", inferences=2))
    assert counted(metrics) == {("e0", "m", "1"): 3, ("e0", "m", "2"): 2}
    seconds = counted(metrics, "headrace_endpoint_model_queue_seconds_total")
    assert seconds["e0", "m", "1"] == pytest.approx(1.5)


async def test_counters_never_fall_when_a_server_begins_anew(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    one = await server(house, read)
    await one.read(row("m", inferences=0))
    await one.read(row("m", inferences=10, queue_ns=7_000_000_000))
    await one.read(row("m", inferences=4, queue_ns=2_000_000_000))
    assert counted(metrics)["e0", "m", "1"] == 14
    # one number that fell shows that all of them began anew
    await one.read(row("m", inferences=6, queue_ns=1_000_000_000))
    assert counted(metrics)["e0", "m", "1"] == 20
    await one.read()
    await one.read(row("m", inferences=5))
    assert counted(metrics)["e0", "m", "1"] == 25


async def test_addresses_of_an_endpoint_are_counted_together(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    one = await server(house, read)
    two = Server(read, one.member)
    for each in (one, two):
        await each.read(row("m"))
    await one.read(row("m", inferences=2))
    await two.read(row("m", inferences=3))
    assert counted(metrics) == {("e0", "m", "1"): 5}


async def test_only_models_that_are_listed_or_have_answered_are_series(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    listing = await server(house, read)
    catch_all = await server(house, read, 1, models=[])
    for each in (listing, catch_all):
        await each.read(row("m"), row("other", inferences=50))
        await each.read(row("m", inferences=1), row("other", inferences=51))
    assert counted(metrics) == {("e0", "m", "1"): 1}
    await house.ask("other")
    await catch_all.read(row("m", inferences=2), row("other", inferences=53))
    assert counted(metrics) == {("e0", "m", "1"): 1, ("e1", "other", "1"): 2}


async def test_versions_that_a_server_makes_up_are_bounded(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    one = await server(house, read)
    await one.read(*(row("m", str(version)) for version in range(5000)))
    assert len(counted(metrics)) == 256


async def test_an_endpoint_that_goes_takes_its_series_along(
    house: RouterHouse, statistics: tuple[EndpointStatistics, Metrics]
) -> None:
    read, metrics = statistics
    one = await server(house, read)
    await one.read(row("m"))
    read.forget(one.member.endpoint)
    assert counted(metrics) == {}


async def test_the_fleet_reads_every_address_until_its_endpoint_goes() -> None:
    settings = HealthCheckSettings(enabled=False, statistics_s=0.01)
    async with RouterHouse(health_checks=settings) as house:
        await house.put(endpoint(0))
        told = house.upstreams["http://h:8000"].told
        told.counts = {"m": 0}
        await until(lambda: len(told.asked) > 2)
        told.counts = {"m": 4}
        await until(lambda: list(house.counted(INFERENCES).values()) == [4])
        await house.drop(("default", "e0"))
        assert house.counted(INFERENCES) == {}
        asked = len(told.asked)
        assert await settled(lambda: len(told.asked), still_s=0.05) == asked


async def test_a_server_without_statistics_is_asked_once_until_it_comes_back() -> None:
    settings = HealthCheckSettings(enabled=False, statistics_s=0.001)
    read = EndpointStatistics(
        Metrics(version="1"), settings=settings, clock=lambda: 0.0, chance=lambda: 0.5
    )
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        ((_, (member,)),) = house.fleet.endpoints("default")
        told = house.upstreams["http://h:8000"].told
        told.fails = Unsupported("no such extension")
        watch = asyncio.create_task(read.watch(member))
        await until(lambda: told.asked)
        assert await settled(lambda: len(told.asked), still_s=0.05) == 1
        member.returns += 1
        await until(lambda: len(told.asked) == 2)
        told.fails = EndpointFailed("it broke off")  # that is no word about the extension
        member.returns += 1
        await until(lambda: len(told.asked) > 5)
        watch.cancel()


async def test_this_process_counts_for_itself(
    statistics: tuple[EndpointStatistics, Metrics],
) -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, protocol="in-process", url=""))
        ((_, (member,)),) = house.fleet.endpoints("default")
        assert isinstance(member.upstream, FakeUpstream)
        await statistics[0].watch(member)
        await turns()
        assert member.upstream.told.asked == []
