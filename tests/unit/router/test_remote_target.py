from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.domain.catalog import Route, Target
from headrace.domain.errors import HeadraceError
from headrace.ports.catalogue import Entry
from tests.support.router_fakes import AT, NoLocalModels, RouterHouse, endpoint


class Local(NoLocalModels):
    """`here` is a model of this process."""

    def knows(self, tenant: str, model: str) -> bool:
        del tenant
        return model == "here"

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        return None if model == "here" else super().obstacle(tenant, model, version)


@pytest.fixture
async def house() -> AsyncIterator[RouterHouse]:
    async with RouterHouse(local=Local(), shared=[("default", "e9")]) as house:
        await house.put(
            endpoint(0, tenant="blue", models=["m"]),
            endpoint(1, tenant="green", models=["m"]),
            endpoint(9, models=[]),
        )
        yield house


def asked(house: RouterHouse, model: str, tenant: str = "blue") -> tuple[str, str, set[str]] | None:
    found = house.router.remote_target(tenant, model, "")
    if found is None:
        return None
    pool, version = found
    return pool.model, version, {lane.member.endpoint.name for lane in pool.lanes}


def route(house: RouterHouse, *targets: Target) -> None:
    found = Route(tenant="blue", name="r", targets=targets, created_at=AT, updated_at=AT)
    house.catalogue.entries["blue", "r"] = Entry(route=found)
    house.catalogue.changed(("route", ("blue", "r")))


async def test_it_is_where_requests_of_the_tenant_go(house: RouterHouse) -> None:
    assert asked(house, "m") == ("m", "", {"e0"})
    assert asked(house, "m", "green") == ("m", "", {"e1"})
    assert asked(house, "m", "red") == ("m", "", {"e9"})
    assert asked(house, "other") == ("other", "", {"e9"})
    assert asked(house, "here") is None


async def test_a_route_is_its_heaviest_target_that_is_ready(house: RouterHouse) -> None:
    heavy = Target(model="far", version="7", weight=9, endpoints={"gpu": "a100"})
    route(house, Target(model="m", version="2", weight=1), heavy)
    assert asked(house, "r") == ("m", "2", {"e0"})
    await house.put(endpoint(2, tenant="blue", models=["far"], labels={"gpu": "a100"}))
    assert asked(house, "r") == ("far", "7", {"e2"})


async def test_a_route_with_a_target_here_is_not_asked_elsewhere(house: RouterHouse) -> None:
    route(house, Target(model="m", weight=9), Target(model="here", weight=1))
    assert asked(house, "r") is None
    assert house.router.local_target("blue", "r", "") == ("here", "")
