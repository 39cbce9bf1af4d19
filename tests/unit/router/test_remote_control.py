from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from headrace.domain.errors import (
    EndpointFailed,
    EndpointTimeout,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    NoReadyEndpoint,
    UnknownModel,
    Unsupported,
)
from headrace.ports.model_control import IndexEntry, ModelMetadata, Unfit
from headrace.ports.upstream import Site, Sited
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.router.pool import Pool
from headrace.router.remote_control import RemoteControl
from tests.support.router_fakes import FakeModels, RouterHouse, endpoint, failed, turns
from tests.support.waiting import until


class HereModels:
    """The port ModelControl over one model, `m`, of this process."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.done: list[str] = []

    def of(self, tenant: str) -> HereModels:
        return HereModels(tenant)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        del version
        return ModelMetadata(model, ("1",), f"here for {self.tenant}", (), ())

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        del version
        return {"name": model}

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        del model, version
        return None

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        del model, version
        return None

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        del model, version
        return [{"name": "m", "version": "1", "inference_count": 100}]

    async def index(self) -> Sequence[IndexEntry]:
        return [IndexEntry("m", "1", "READY", "")]

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        del config_json
        self.done.append(f"load {model}")

    async def unload(self, model: str) -> None:
        self.done.append(f"unload {model}")


@pytest.fixture
async def house() -> AsyncIterator[RouterHouse]:
    async with RouterHouse(shared=[("default", "e8"), ("default", "e9")]) as house:
        yield house


def control(house: RouterHouse, timeout_s: float = 5.0) -> RemoteControl:
    return RemoteControl(
        house.fleet, here=HereModels, timeout_s=timeout_s, load_s=300.0, clock=house.clock
    )


def told(house: RouterHouse, number: int) -> FakeModels:
    return house.upstreams[f"http://h:{8000 + number}"].told


def pool(house: RouterHouse, model: str = "m", tenant: str = "default") -> Pool:
    found = house.router.remote_target(tenant, model, "")
    assert found is not None
    return found[0]


def lines(entries: Sequence[IndexEntry]) -> list[tuple[str, str, str]]:
    return [(entry.name, entry.version, entry.state) for entry in entries]


def two_addresses(house: RouterHouse) -> None:
    house.sites["http://h:8000"] = Sited(
        tuple(Site("h", 80, ip_address(f"10.0.0.{n}")) for n in (1, 2)), (), fixed=True
    )


# metadata and configuration


async def test_the_next_address_is_asked_where_one_fails(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1))
    told(house, 0).fails = failed()
    told(house, 1).states = {"m": "READY"}
    found = await control(house).metadata("default", pool(house), "")
    assert (found.name, found.platform) == ("m", "e1")
    assert (await control(house).config("default", pool(house), ""))["backend"] == "e1"


async def test_one_that_hangs_leaves_the_next_its_part_of_the_time(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1))
    told(house, 0).hangs = asyncio.get_running_loop().create_future()
    told(house, 1).states = {"m": "READY"}
    found = await control(house, timeout_s=0.02).metadata("default", pool(house), "")
    assert found.platform == "e1"
    assert told(house, 0).deadlines == [pytest.approx(house.clock.now + 0.01)]


async def test_what_is_unknown_everywhere_is_unknown(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1))
    told(house, 0).fails = failed()
    with pytest.raises(UnknownModel):
        await control(house).metadata("default", pool(house), "7")
    assert told(house, 1).asked == [("metadata", "m", "7")]


async def test_a_refusal_is_told_without_asking_others(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1))
    told(house, 0).fails = Unsupported("no such extension")
    with pytest.raises(Unsupported):
        await control(house).config("default", pool(house), "")
    assert told(house, 1).asked == []


async def test_an_endpoint_without_an_address_cannot_be_asked(house: RouterHouse) -> None:
    house.sites["http://h:8000"] = OSError("no such name")
    await house.put(endpoint(0))
    with pytest.raises(NoReadyEndpoint):
        await control(house).metadata("default", pool(house), "")
    with pytest.raises(NoReadyEndpoint):
        await control(house).load("default", pool(house))


async def test_this_process_is_asked_as_the_tenant_where_it_is_the_endpoint(
    house: RouterHouse,
) -> None:
    await house.put(endpoint(0, tenant="blue", protocol="in-process"))
    found = await control(house).metadata("blue", pool(house, tenant="blue"), "")
    assert found.platform == "here for blue"


async def test_an_answer_that_cannot_be_understood_is_the_endpoints_failure(
    house: RouterHouse,
) -> None:
    await house.put(endpoint(0))
    told(house, 0).states = {"m": "READY"}
    told(house, 0).config = None  # type: ignore[method-assign,assignment]
    with pytest.raises(EndpointFailed, match="endpoint 'e0'"):
        await control(house).config("default", pool(house), "")
    await house.put(endpoint(1))  # the fleet goes on
    assert [lane.member.endpoint.name for lane in house.lanes] == ["e0", "e1"]


# statistics


async def test_statistics_of_a_model_are_those_of_all_its_addresses(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1), endpoint(2))
    for number, count in ((0, 3), (1, 4)):
        told(house, number).states = {"m": "READY"}
        told(house, number).counts = {"m": count}
    told(house, 2).fails = failed()
    (row,) = await control(house).statistics("default", pool(house), "")
    assert row == {"name": "m", "version": "1", "inference_count": 7}
    for number in (0, 1):
        told(house, number).fails = EndpointTimeout("too late")
    with pytest.raises(EndpointTimeout):
        await control(house).statistics("default", pool(house), "")


async def test_statistics_of_everything_are_of_what_the_tenant_may_ask(house: RouterHouse) -> None:
    await house.put(
        endpoint(0, tenant="blue", models=["a"]),
        endpoint(1, tenant="green", models=["b"]),
        endpoint(8, models=["a", "c"]),
        endpoint(9, models=[]),
    )
    for number in (0, 1, 8, 9):
        told(house, number).counts = dict.fromkeys(("a", "b", "c", "m", "x"), number + 1)
    here = await HereModels("blue").statistics()
    found = await control(house).all_statistics("blue", here)
    counts = {row["name"]: row["inference_count"] for row in found}
    assert counts == {"a": 1, "b": 10, "c": 9, "m": 100, "x": 10}


# index


async def test_the_index_joins_what_the_tenant_may_ask(house: RouterHouse) -> None:
    await house.put(
        endpoint(0, tenant="blue", models=["a"]),
        endpoint(1, tenant="green", models=["g"]),
        endpoint(8, models=["a", "c"]),
        endpoint(9, models=[]),
    )
    told(house, 0).states = {"a": "is being loaded", "unlisted": "READY"}
    told(house, 1).states = {"g": "READY"}
    told(house, 8).states = {"a": "READY", "c": "READY"}
    told(house, 9).states = {"a": "READY", "m": "READY", "x": "READY"}
    here = [IndexEntry("m", "1", "UNAVAILABLE", "unloaded")]
    assert lines(await control(house).index("blue", here)) == [
        ("a", "1", "UNAVAILABLE"),
        ("c", "1", "READY"),
        ("m", "1", "UNAVAILABLE"),
        ("x", "1", "READY"),
    ]


async def test_what_is_here_goes_before_what_endpoints_tell_of_it(house: RouterHouse) -> None:
    await house.put(endpoint(0))
    told(house, 0).states = {"m": "READY"}
    here = [IndexEntry("m", "1", "UNAVAILABLE", "unloaded")]
    assert await control(house).index("default", here) == here


async def test_ones_own_endpoints_that_serve_anything_go_before_the_settings(
    house: RouterHouse,
) -> None:
    await house.put(endpoint(0, tenant="blue", models=[]), endpoint(9, models=[]))
    told(house, 0).states = {"x": "READY"}
    told(house, 9).states = {"y": "READY"}
    assert lines(await control(house).index("blue", [])) == [("x", "1", "READY")]
    assert lines(await control(house).index("red", [])) == [("y", "1", "READY")]


async def test_a_model_is_ready_where_any_address_says_so(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1))
    told(house, 0).states = {"m": "is being loaded"}
    told(house, 1).states = {"m": "READY"}
    assert lines(await control(house).index("default", [])) == [("m", "1", "READY")]
    told(house, 1).states = {}
    assert await control(house).index("default", []) == [
        IndexEntry("m", "1", "UNAVAILABLE", "is being loaded")
    ]


async def test_what_cannot_be_asked_is_unavailable_and_says_no_address(house: RouterHouse) -> None:
    two_addresses(house)
    await house.put(endpoint(0, models=["m", "n"]))
    for address in ("10.0.0.1", "10.0.0.2"):
        house.at[address].told.fails = failed()
    found = await control(house).index("default", [])
    assert lines(found) == [("m", "", "UNAVAILABLE"), ("n", "", "UNAVAILABLE")]
    assert {entry.reason for entry in found} == {"endpoint 'e0' cannot be asked"}
    house.at["10.0.0.2"].told.fails = None
    house.at["10.0.0.2"].told.states = {"m": "READY"}
    assert lines(await control(house).index("default", [])) == [
        ("m", "1", "READY"),
        ("n", "", "UNAVAILABLE"),
    ]


async def test_what_an_endpoint_was_known_to_have_is_unavailable_while_it_cannot_be_asked(
    house: RouterHouse,
) -> None:
    await house.put(endpoint(9, models=[]))
    told(house, 9).states = {"x": "READY"}
    asked = control(house)
    assert lines(await asked.index("default", [])) == [("x", "1", "READY")]
    told(house, 9).fails = failed()
    assert await asked.index("default", []) == [
        IndexEntry("x", "1", "UNAVAILABLE", "endpoint 'e9' cannot be asked")
    ]
    told(house, 9).fails = None
    told(house, 9).states = {}
    assert await asked.index("default", []) == []


async def test_the_index_does_not_wait_for_what_hangs(house: RouterHouse) -> None:
    await house.put(endpoint(0, models=["a"]), endpoint(1, models=["b"]))
    told(house, 0).hangs = asyncio.get_running_loop().create_future()
    told(house, 1).states = {"b": "READY"}
    asked = control(house, timeout_s=0.02)
    assert lines(await asked.index("default", [])) == [
        ("a", "", "UNAVAILABLE"),
        ("b", "1", "READY"),
    ]
    patient = control(house, timeout_s=60)
    waiting = asyncio.create_task(patient.index("default", []))
    await turns()
    assert told(house, 0).deadlines[-1] <= house.clock.now + 1
    waiting.cancel()


async def test_where_there_is_no_index_the_checks_tell(house: RouterHouse) -> None:
    await house.put(endpoint(0))
    told(house, 0).fails = Unsupported("no such extension")
    assert lines(await control(house).index("default", [])) == [("m", "", "READY")]


async def test_an_endpoint_that_leads_back_here_is_asked_once(house: RouterHouse) -> None:
    await house.put(endpoint(9, models=[]), endpoint(8, models=[]))
    asked = control(house, timeout_s=0.05)
    for number in (8, 9):
        models = told(house, number)
        outer = models.index

        async def index(deadline: float, outer: Any = outer) -> Sequence[IndexEntry]:
            await outer(deadline)
            return await asked.index("default", [])

        models.index = index  # type: ignore[method-assign]
    await asked.index("default", [])
    assert [len(told(house, number).asked) for number in (8, 9)] == [1, 1]


# loading and unloading


async def test_a_model_is_loaded_at_every_address_of_its_endpoints(house: RouterHouse) -> None:
    two_addresses(house)
    await house.put(endpoint(0), endpoint(1))
    await control(house).load("default", pool(house), config_json=b"{}")
    everybody = [house.at["10.0.0.1"].told, house.at["10.0.0.2"].told, told(house, 1)]
    assert [models.configs for models in everybody] == [[b"{}"]] * 3
    await control(house).unload("default", pool(house))
    assert [models.states for models in everybody] == [{}] * 3


async def test_a_load_that_fails_in_part_has_failed_and_says_so(house: RouterHouse) -> None:
    await house.put(endpoint(0), endpoint(1), endpoint(2))
    told(house, 1).states = {"m": "version 1 is at 10.1.2.3:8000, see /srv/models/m/1/model.py"}
    told(house, 2).fails = failed(retry_after_s=2)
    with pytest.raises(InvalidRequest) as caught:
        await control(house).load("default", pool(house))
    assert caught.value.message == (
        "failed to load 'm' at 2 of 3 addresses: endpoint 'e1': failed to load 'm', version 1 is "
        "at …, see …; endpoint 'e2': it broke off"
    )
    assert told(house, 0).states == {"m": "READY"}


async def test_nobody_but_the_operator_loads_models_of_shared_endpoints(
    house: RouterHouse,
) -> None:
    await house.put(endpoint(0, tenant="blue", models=["own"]), endpoint(8))
    asked = control(house)
    for verb in (asked.load, asked.unload):
        with pytest.raises(Forbidden, match="by the tenant 'default' only"):
            await verb("blue", pool(house, tenant="blue"))
    assert told(house, 8).asked == []
    await asked.load("default", pool(house))
    await asked.load("blue", pool(house, "own", tenant="blue"))
    assert told(house, 0).asked == [("load", "own")]


async def test_two_who_load_a_model_at_a_time_load_it_once(house: RouterHouse) -> None:
    await house.put(endpoint(0))
    hangs = told(house, 0).hangs = asyncio.get_running_loop().create_future()
    asked = control(house)
    loads = [asyncio.create_task(asked.load("default", pool(house))) for _ in range(2)]
    await turns()
    hangs.set_result(None)
    await asyncio.gather(*loads)
    assert told(house, 0).asked == [("load", "m")]


async def test_what_was_just_loaded_is_asked_at_once() -> None:
    checks = HealthCheckSettings(interval_s=3600)
    async with RouterHouse(health_checks=checks) as house:
        await house.put(endpoint(0))
        (lane,) = house.lanes
        for _ in range(checks.unhealthy_after):
            lane.member.model_checks["m"].said(ready=False)
        assert not lane.ready(house.clock.now)
        await control(house).load("default", pool(house))
        assert lane.ready(house.clock.now)


async def test_a_model_that_was_just_loaded_is_tried_though_its_breaker_is_open() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        (lane,) = house.lanes
        now = house.clock.now
        for _ in range(5):
            lane.breaker.failed(lane.breaker.begin(now), now)
        assert not lane.ready(now)
        await control(house).load("default", pool(house))
        assert lane.ready(now)


async def test_a_load_goes_on_when_nobody_waits_for_it_any_more(house: RouterHouse) -> None:
    await house.put(endpoint(0))
    hangs = told(house, 0).hangs = asyncio.get_running_loop().create_future()
    load = asyncio.create_task(control(house).load("default", pool(house)))
    await turns()
    load.cancel()
    await asyncio.wait([load])
    hangs.set_result(None)
    await until(lambda: told(house, 0).states == {"m": "READY"})
